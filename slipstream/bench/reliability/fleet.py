"""Verifiers, drafters and gateways as processes of their own, each of which can be hit."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slipstream.bench.load.doors import GrpcDoor, HttpDoor, grpc_door, http_door
from slipstream.bench.load.stack import until_ready
from slipstream.bench.processes import Child, child, free_address, wait_until_serving
from slipstream.bench.reliability.settings import ReliabilitySettings
from slipstream.bench.services import Verifier
from slipstream.bench.setups import service
from slipstream.core.errors import InternalError
from slipstream.wire.proto import verifier_pb2_grpc
from slipstream.wire.transport import channel

_START_SECONDS = 300.0
_STRICT = ("--exactness", "strict")


@dataclass(slots=True)
class Member:
    """A service at an address of its own; it can be started again after it has ended.

    Attributes:
        words: its command line.
        starts: how often it was started; log files are numbered by it.
    """

    name: str
    address: str
    words: list[str]
    logs: Path
    starts: int = 0
    _child: Child | None = None
    _exits: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def pid(self) -> int:
        """Raises InternalError where it was not started."""
        if self._child is None:
            raise InternalError(f"{self.name} was not started")
        return self._child.process.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.process.returncode is None

    async def start(self) -> None:
        """Returns when it serves. Raises as `wait_until_serving`."""
        self.starts += 1
        async with AsyncExitStack() as exits:
            started = await exits.enter_async_context(
                child(f"{self.name}-{self.starts}", self.words, self.logs)
            )
            await wait_until_serving(started, self.address, _START_SECONDS)
            self._child, self._exits = started, exits.pop_all()

    def hit(self, number: int) -> None:
        """Sends a signal; no error where the process is gone."""
        if self.running:
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        self.hit(signal.SIGKILL)
        await self.end()

    async def end(self) -> None:
        """SIGTERM, ten seconds, SIGKILL."""
        await self._exits.aclose()
        self._child = None


async def begin(exits: AsyncExitStack, member: Member) -> Member:
    """Starts it; whatever runs under its name then ends with `exits`."""
    exits.push_async_callback(member.end)
    await member.start()
    return member


def verifier(
    settings: ReliabilitySettings,
    name: str,
    cpus: Sequence[int],
    drafter: str = "off",
    options: Sequence[str] = (),
) -> Member:
    """In exactness strict, not started yet. `drafter` is an address, or off."""
    address = free_address()
    words = [*service("verifier_service", address, cpus), "--model", str(settings.model)]
    words += [*_STRICT, "--served-model-name", settings.model_name, "--drafter", drafter]
    return Member(name, address, [*words, *options], settings.logs)


def drafter(settings: ReliabilitySettings, name: str, cpus: Sequence[int]) -> Member:
    """Not started yet."""
    address = free_address()
    words = [*service("drafter_service", address, cpus), "--model", str(settings.model)]
    return Member(name, address, words, settings.logs)


@dataclass(frozen=True, slots=True)
class Front:
    """A running gateway and its doors."""

    child: Child
    url: str
    grpc: str
    http: HttpDoor
    door: GrpcDoor

    @property
    def pid(self) -> int:
        return self.child.process.pid


@asynccontextmanager
async def front(
    settings: ReliabilitySettings,
    name: str,
    verifiers: Sequence[str],
    options: Sequence[str] = (),
) -> AsyncIterator[Front]:
    """A gateway in front of these verifiers, ready; it ends with the context.

    Raises:
        ConfigurationError: it ended instead of serving.
        DeadlineExceeded: it was not ready in time.
    """
    http, grpc = free_address(), free_address()
    words = [sys.executable, "-m", "gateway", "--model", str(settings.model)]
    words += ["--served-model-name", settings.model_name, "--verifier", ",".join(verifiers)]
    words += ["--http", http, "--grpc", grpc, "--log-level", "warning", *options]
    async with AsyncExitStack() as exits:
        started = await exits.enter_async_context(child(name, words, settings.logs))
        await until_ready(started, f"http://{http}/ready", grpc)
        web = await exits.enter_async_context(http_door(f"http://{http}", settings.model_name))
        door = await exits.enter_async_context(grpc_door(grpc))
        yield Front(started, f"http://{http}", grpc, web, door)


@asynccontextmanager
async def direct(address: str) -> AsyncIterator[Verifier]:
    """A verifier, asked by ourselves."""
    async with channel(address) as link:
        yield Verifier(verifier_pb2_grpc.VerifierServiceStub(link))


def sqlite_url(folder: Path) -> str:
    """Of a file in this folder."""
    return f"sqlite://{(folder / 'sessions.db').resolve()}"
