"""What a load left behind in running services: asked before it, and again after it.

before = await levels(watched)
...                                     # the load
assert not await leaked(watched, before)
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.transport import channel

_CALL_SECONDS = 5.0
_POLL_SECONDS = 0.25
# What only a request in progress has. Everything else may be as high as it was before.
_ZERO = "in use: "
_MIB = " MiB"


@dataclass(frozen=True, slots=True)
class Watched:
    """The services that are asked; what is None is left out.

    Attributes:
        gateway: base URL of its HTTP door.
        api_key: for the gateway's `/metrics`, where it asks for one.
        verifier, drafter: `host:port` of their gRPC servers.
        pids: name -> process whose sockets and memory are looked at (Linux only).
    """

    gateway: str | None = None
    api_key: str | None = None
    verifier: str | None = None
    drafter: str | None = None
    pids: Mapping[str, int] = field(default_factory=dict)


async def levels(watched: Watched) -> dict[str, float]:
    """What is held now, by name.

    Raises:
        OSError, httpx.HTTPError, grpc.aio.AioRpcError: a service or a process does not answer.
    """
    found: dict[str, float] = {}
    # First, as a service may take a moment to close its end of the connections that are made below.
    for name, pid in watched.pids.items():
        found |= _process(name, pid)
    if watched.gateway is not None:
        found |= await _gateway(watched.gateway, watched.api_key)
    if watched.verifier is not None:
        found |= await _verifier(watched.verifier)
    if watched.drafter is not None:
        found |= await _drafter(watched.drafter)
    return found


async def leaked(
    watched: Watched,
    before: Mapping[str, float],
    *,
    seconds: float = 20.0,
    memory_slack_mib: float = 64.0,
) -> list[str]:
    """What is still held; empty as soon as that is nothing.

    Args:
        before: the levels of an idle system that has served some requests already, so that lazily
            made things are there.
        seconds: to wait for what ends by itself: idle connections (5 s), leases of a lost drafter.
        memory_slack_mib: that a process may grow by: allocators and caches do not give all back.

    Raises:
        As `levels`.
    """
    until = time.monotonic() + seconds
    while True:
        left = _above(before, await levels(watched), memory_slack_mib)
        if not left or time.monotonic() > until:
            return left
        await asyncio.sleep(_POLL_SECONDS)


def _above(before: Mapping[str, float], now: Mapping[str, float], slack_mib: float) -> list[str]:
    found = []
    for name, level in now.items():
        allowed = 0.0 if _ZERO in name else before.get(name, 0.0)
        allowed += slack_mib if name.endswith(_MIB) else 0.0
        if level > allowed:
            found.append(f"{name}: {level:g}, not more than {allowed:g} expected")
    return found


async def _gateway(url: str, api_key: str | None) -> dict[str, float]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    async with httpx.AsyncClient(timeout=_CALL_SECONDS, trust_env=False) as client:
        answer = (await client.get(f"{url}/metrics", headers=headers)).raise_for_status()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return {
        f"gateway, {_ZERO}requests": sums["slipstream:num_requests_running"],
        f"gateway, {_ZERO}calls to the verifier": sums["slipstream:verifier_calls"],
        "gateway, tasks": sums["slipstream:asyncio_tasks"],
    }


async def _verifier(address: str) -> dict[str, float]:
    async with channel(address) as link:
        stub = verifier_pb2_grpc.VerifierServiceStub(link)
        status = await stub.GetStatus(verifier_pb2.GetStatusRequest(), timeout=_CALL_SECONDS)
    return {
        f"verifier, {_ZERO}requests running": status.requests_running,
        f"verifier, {_ZERO}requests waiting": status.requests_waiting,
        f"verifier, {_ZERO}sequences": status.open_sequences,
        f"verifier, {_ZERO}blocks": status.kv_blocks_used,
        f"verifier, {_ZERO}leases": status.kv_leases,
    }


async def _drafter(address: str) -> dict[str, float]:
    async with channel(address) as link:
        stub = drafter_pb2_grpc.DrafterServiceStub(link)
        status = await stub.GetDrafter(drafter_pb2.GetDrafterRequest(), timeout=_CALL_SECONDS)
    return {
        f"drafter, {_ZERO}sequences": status.open_sequences,
        f"drafter, {_ZERO}blocks": status.kv_blocks_used,
    }


def _process(name: str, pid: int) -> dict[str, float]:
    folder = Path(f"/proc/{pid}")
    if not Path("/proc/self/statm").exists():
        return {}
    resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {f"{name}, sockets": _sockets(folder / "fd"), f"{name},{_MIB}": resident / 2**20}


def _sockets(folder: Path) -> int:
    count = 0
    for entry in folder.iterdir():
        try:
            count += str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:
            # Closed while we looked.
            continue
    return count
