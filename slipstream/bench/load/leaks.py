"""What a stack still holds when nobody asks for anything any more."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from slipstream.bench.load.stack import Stack
from slipstream.bench.machine import memory
from slipstream.core.errors import SlipstreamError

# What ends with the last request must have ended by then; a lease of a drafter that was killed
# runs for ten seconds more.
_SETTLE_SECONDS = 20.0
_POLL_SECONDS = 0.5
# Connections that stay: a gateway's clients keep some, and health checks come and go.
_MORE_SOCKETS = 8
_MORE_FILES = 12
_MORE_THREADS = 8
# Allocators keep what they had.
_MORE_BYTES = 96 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """By one process. `private` bytes leave out what is mapped from files.

    Attributes:
        files: open ones by what they are, sockets among them.
    """

    pid: int
    private: int
    files: Mapping[str, int]
    threads: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Of a stack at rest. `counts` must all be 0 there; processes may hold what they did before."""

    counts: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, Held] = field(default_factory=dict)


def held(pid: int) -> Held | None:
    """None where the process is gone."""
    size = memory(pid)
    try:
        files = Counter(map(_kind, Path(f"/proc/{pid}/fd").iterdir()))
        threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return None
    if size is None:
        return None
    return Held(pid, size.private, files, threads)


def _kind(entry: Path) -> str:
    """Of an open file: socket, pipe, anonymous, or a path without its numbers."""
    try:
        link = str(entry.readlink())
    except OSError:
        return "closed meanwhile"
    return re.sub(r"[\d\[\]:]+", "", link.removesuffix(" (deleted)"))


async def counts(stack: Stack) -> dict[str, int]:
    """What must be nothing at rest. Raises SlipstreamError where a service does not answer."""
    status = await stack.verifier.status()
    found = {
        "requests running": status.requests_running,
        "requests waiting": status.requests_waiting,
        "open sequences of the verifier": status.open_sequences,
        "KV leases": status.kv_leases,
        "KV blocks that only leases hold": status.kv_leased_blocks,
        "KV blocks of sequences": status.kv_blocks_used,
    }
    try:
        drafter = await stack.drafter_status()
    except grpc.aio.AioRpcError as failure:
        # It may have just been killed; the next look finds the new one.
        return {**found, f"no answer from the drafter ({failure.code().name})": 1}
    if drafter is not None:
        found["open sequences of the drafter"] = drafter.open_sequences
        found["KV blocks of the drafter's sequences"] = drafter.kv_blocks_used
    return found


async def at_rest(stack: Stack) -> Snapshot:
    """Waits until nothing is held, or as long as that may take, and looks."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while any((found := await _counts_or_failure(stack)).values()):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_SECONDS)
    processes = {name: each for name, pid in stack.pids().items() if (each := held(pid))}
    return Snapshot(found, processes)


async def _counts_or_failure(stack: Stack) -> dict[str, int]:
    try:
        return await counts(stack)
    except SlipstreamError as failure:
        return {f"no answer from the verifier ({failure.code})": 1}


def leaks(before: Snapshot, after: Snapshot, pool_bytes: int) -> list[str]:
    """One line for everything that should have been given back; empty where all was.

    A process that was started again meanwhile is not compared with the one before it.

    Args:
        pool_bytes: size of a KV pool, whose memory comes into use block by block.
    """
    found = [f"{count} {what}" for what, count in after.counts.items() if count]
    for name, now in after.processes.items():
        then = before.processes.get(name)
        if then is None or then.pid != now.pid:
            continue
        found += [f"{name}: {line}" for line in _grown(then, now, pool_bytes)]
    missing = before.processes.keys() - after.processes.keys()
    return [*found, *(f"{name}: the process is gone" for name in sorted(missing))]


def _grown(then: Held, now: Held, pool_bytes: int) -> list[str]:
    lines = []
    if now.private - then.private > _MORE_BYTES + pool_bytes:
        lines.append(f"memory grew from {then.private >> 20} to {now.private >> 20} MiB")
    for what, most in (("socket", _MORE_SOCKETS), (None, _MORE_FILES)):
        more = {k: n - then.files.get(k, 0) for k, n in now.files.items() if what in (None, k)}
        if sum(more.values()) > most:
            kinds = ", ".join(f"{count} {kind}" for kind, count in more.items() if count > 0)
            lines.append(f"open files that were not there before: {kinds}")
            break
    if now.threads - then.threads > _MORE_THREADS:
        lines.append(f"threads grew from {then.threads} to {now.threads}")
    return lines
