"""The whole product as one child process: `slipstream up`, with its services looked up in /proc."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from slipstream.bench.leaks import Watched
from slipstream.bench.load.doors import GrpcDoor, HttpDoor, grpc_door, http_door
from slipstream.bench.processes import Child, child, free_address
from slipstream.bench.services import Verifier
from slipstream.core.errors import DeadlineExceeded
from slipstream.wire.proto import verifier_pb2_grpc
from slipstream.wire.transport import channel, is_serving

_READY_SECONDS = 300.0
_DRAFTER_SECONDS = 60.0
_POLL_SECONDS = 0.2
_MODULES = {"verifier_service": "verifier", "drafter_service": "drafter", "gateway": "gateway"}


@dataclass(frozen=True, slots=True)
class Stack:
    """A running `slipstream up`.

    Attributes:
        url, grpc: where the gateway is.
        inner: address of the verifier.
        drafter: address, empty where there is none.
    """

    child: Child
    url: str
    grpc: str
    inner: str
    drafter: str
    model: str
    door: GrpcDoor
    http: HttpDoor
    verifier: Verifier

    def pids(self) -> dict[str, int]:
        """Of the services that run now, by name; changes when one is started again."""
        found: dict[str, int] = {}
        for pid in _children(self.child.process.pid):
            words = _command(pid)
            if "-m" in words and (name := _MODULES.get(words[words.index("-m") + 1])):
                found[name] = pid
        return found

    def kill_drafter(self) -> bool:
        """SIGKILL, as a crash would; `slipstream up` starts another. Whether there was one."""
        pid = self.pids().get("drafter")
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is not None

    def watched(self) -> Watched:
        """For leak checks."""
        return Watched(
            gateway=self.url,
            verifier=self.inner,
            drafter=self.drafter or None,
            pids=self.pids(),
        )


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@asynccontextmanager
async def running_stack(
    name: str, model: Path, options: Sequence[str], logs: Path, *, drafter: bool = True
) -> AsyncIterator[Stack]:
    """Starts `slipstream up` on free ports and waits until it is whole; ends it with the context.

    Args:
        name: of the log file and of the served model.
        options: further words for `slipstream up`.

    Raises:
        ConfigurationError: it ended instead of serving; the end of its log is in the message.
        DeadlineExceeded: it was not ready in time, or its drafter did not connect.
    """
    http, grpc, verifier = free_address(), free_address(), free_address()
    command = [sys.executable, "-m", "slipstream.cli", "up", "--model", str(model)]
    command += ["--served-model-name", name, "--http", http, "--grpc", grpc]
    command += ["--verifier-listen", verifier]
    address = free_address() if drafter else ""
    command += ["--drafter-listen", address] if drafter else ["--drafter", "off"]
    async with AsyncExitStack() as exits:
        up = await exits.enter_async_context(child(name, [*command, *options], logs))
        await until_ready(up, f"http://{http}/ready", verifier)
        door = await exits.enter_async_context(grpc_door(grpc))
        web = await exits.enter_async_context(http_door(f"http://{http}", name))
        link = await exits.enter_async_context(channel(verifier))
        behind = Verifier(verifier_pb2_grpc.VerifierServiceStub(link))
        if drafter:
            await behind.wait_for_drafter(_DRAFTER_SECONDS)
        yield Stack(up, f"http://{http}", grpc, verifier, address, name, door, web, behind)


async def until_ready(up: Child, url: str, address: str) -> None:
    """Returns when `url` answers with status 200 and what listens at `address` says SERVING.

    Raises as `running_stack` does.
    """
    deadline = asyncio.get_running_loop().time() + _READY_SECONDS
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
        while not (await _says_ok(client, url) and await is_serving(address)):
            if up.process.returncode is not None:
                raise up.failure(f"ended with exit code {up.process.returncode}")
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineExceeded(f"{up.name} was not ready after {_READY_SECONDS:.0f} s")
            await asyncio.sleep(_POLL_SECONDS)


async def _says_ok(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        return False
