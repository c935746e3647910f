"""Keys and values of a prompt from another verifier, before its request is queued here.

A cache: whatever goes wrong, they are computed. On the event loop, but for what `Intakes` does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from slipstream.core.errors import (
    DeadlineExceeded,
    InternalError,
    KvNotFound,
    ModelMismatch,
    Overloaded,
    SlipstreamError,
    Unavailable,
)
from slipstream.core.kv import KvChunk, KvHandle
from slipstream.core.prefix import PrefixChain, salted
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.kv_rows import as_tensor, dtype_name
from slipstream.wire.kv_client import KvClient
from verifier_service.engine import VerifierEngine
from verifier_service.generation import GenerationRequest
from verifier_service.kv_identity import kv_identity
from verifier_service.kv_intake import Intake, Intakes

log = logging.getLogger(__name__)
T = TypeVar("T")
# Imports at once; whoever comes later waits for one of them within its own time.
_MOST_AT_ONCE = 4
# For a lease; from one chunk to the next; in all. And what a pull always gets: less than that is
# what a busy engine takes to answer, and no estimate of a computation is as exact.
_ACQUIRE_SECONDS, _CHUNK_SECONDS, _MOST_SECONDS, _LEAST_SECONDS = 1.0, 1.0, 5.0, 0.25
# A holder that did not answer is not asked for so long: others would wait for it in vain.
_SHUNNED_SECONDS = 5.0
_LEASE_SECONDS, _GOODBYE_SECONDS = 10.0, 1.0
# Chunks that were received and are not written yet: so much is copied between two steps at most.
_AHEAD = 8
# Why an attempt brought nothing, as the metrics have it.
REASONS = ("not_found", "mismatch", "unreachable", "slow", "no_room", "wrong", "failed")
_REASONS: dict[type[SlipstreamError], str] = {
    KvNotFound: "not_found",
    ModelMismatch: "mismatch",
    Unavailable: "unreachable",
    DeadlineExceeded: "slow",
    Overloaded: "no_room",
    InternalError: "wrong",
}


@dataclass(frozen=True, slots=True)
class _Prefix:
    """What is wanted: names of its blocks, and of all positions."""

    chain: PrefixChain
    names: tuple[bytes, ...]


class KvImports:
    """Brings in what a request's holder has and the pool lacks.

    Args:
        address: host:port of our own KvService; `incarnation`, this life of the process.
        least: seconds that a pull always gets.
    """

    def __init__(
        self,
        engine: VerifierEngine,
        address: str = "",
        incarnation: str = "",
        *,
        least: float = _LEAST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._address, self._incarnation = address, incarnation
        self._identity = kv_identity(engine.runner, engine.limits)
        self._intakes = Intakes(engine)
        self._least = least
        self._clock = clock
        self._places = asyncio.Semaphore(_MOST_AT_ONCE)
        self._active: dict[asyncio.Event, frozenset[bytes]] = {}
        self._shunned: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, request: GenerationRequest) -> GenerationRequest:
        """Brings in what can be had; the request, with what is left of its deadline.

        Raises:
            InvalidParameter, ContextTooLong, DeadlineExceeded: it can never be served.
        """
        holder, deadline = request.kv_holder, request.deadline_seconds
        if not holder or holder == self._address:
            return request
        self._engine.admission.check(request)
        started = self._clock()
        await self._try(request, _MOST_SECONDS if deadline is None else deadline)
        seconds = self._clock() - started
        self._engine.counters.kv_import_seconds += seconds
        return (
            request if deadline is None else replace(request, deadline_seconds=deadline - seconds)
        )

    async def close(self) -> None:
        """Gives leases back and closes connections."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GOODBYE_SECONDS)

    async def _try(self, request: GenerationRequest, seconds: float) -> None:
        """Never raises but where it is cancelled."""
        holder, reason, why = request.kv_holder, "", ""
        try:
            async with asyncio.timeout(min(seconds, _MOST_SECONDS)):
                await self._fetch(request)
        except TimeoutError:
            reason, why = "slow", "it took too long"
        except SlipstreamError as failure:
            kinds = (_REASONS[kind] for kind in type(failure).mro() if kind in _REASONS)
            reason, why = next(kinds, "failed"), failure.message
        except Exception as failure:
            log.exception("keys and values from %s are of no use", holder)
            reason, why = "failed", str(failure)
        if reason:
            self._engine.counters.kv_import_failures[reason] += 1
            log.info(
                "%s: no keys and values from %s, or not all: %s", request.request_id, holder, why
            )
        if reason in ("unreachable", "slow"):
            now = self._clock()
            self._shunned = {name: at for name, at in self._shunned.items() if at > now}
            self._shunned[holder] = now + _SHUNNED_SECONDS

    async def _fetch(self, request: GenerationRequest) -> None:
        prefix, holder = self._wanted(request), request.kv_holder
        if not prefix.names or not await self._lacks(prefix):
            return
        if self._shunned.get(holder, 0.0) > self._clock():
            raise Unavailable("it did not answer a moment ago")
        done = asyncio.Event()
        # Before anything is awaited, so that of two with one prefix the second sees the first.
        self._active[done] = frozenset(prefix.names)
        try:
            async with self._places:
                await self._from(holder, prefix)
        finally:
            del self._active[done]
            done.set()

    def _wanted(self, request: GenerationRequest) -> _Prefix:
        """Of a request's tokens, what the engine would take of others."""
        limits = self._engine.limits
        multiple, most = BLOCK_TOKENS, request.given - 1
        if limits.canonical:
            multiple, most = limits.prefill_chunk, min(most, len(request.prompt))
        most -= most % multiple
        tokens = (*request.prompt, *request.committed)[:most]
        salt = salted(self._engine.runner.loaded.fingerprint, request.cache_salt)
        chain = PrefixChain(salt, tokens)
        ends = range(BLOCK_TOKENS, most + 1, BLOCK_TOKENS)
        return _Prefix(chain, tuple(chain.at(end).hash for end in ends))

    async def _lacks(self, prefix: _Prefix) -> bool:
        """Whether something is missing, once those imports are over that bring half of it."""
        middle, lacks = prefix.names[len(prefix.names) // 2], True
        # The first of them does not ask: to hear the engine's answer takes a step.
        while lacks and (
            others := [each for each, names in self._active.items() if middle in names]
        ):
            await others[0].wait()
            lacks = await self._on_engine(lambda: self._intakes.missing(prefix.names)) > 0
        return lacks

    async def _from(self, holder: str, prefix: _Prefix) -> None:
        client, handle = KvClient(holder), None
        try:
            async with asyncio.timeout(_ACQUIRE_SECONDS):
                handle = await client.acquire_blocks(
                    self._identity, prefix.names, BLOCK_TOKENS, lease_seconds=_LEASE_SECONDS
                )
            if handle.incarnation != self._incarnation:
                self._check(handle, prefix.chain)
                await self._pull(client, handle, prefix)
        finally:
            self._later(_leave(client, handle))

    async def _pull(self, client: KvClient, handle: KvHandle, prefix: _Prefix) -> None:
        begun: list[Intake] = []
        names, keep = prefix.names[: handle.prefix.length // BLOCK_TOKENS], True

        def begin() -> None:
            intake = self._intakes.begin(names)
            if intake is not None:
                begun.append(intake)

        try:
            await self._on_engine(begin)
            if begun:
                await self._receive(client, handle, begun[0], prefix.chain)
        except InternalError:
            keep = False
            raise
        finally:
            # Behind `begin` and all that is written, before the request itself: in that order the
            # engine reads its inbox. Not awaited: nobody may be there any more.
            self._engine.post(lambda: self._end(begun, prefix.chain, keep=keep))

    def _end(self, begun: list[Intake], chain: PrefixChain, *, keep: bool) -> None:
        for intake in begun:
            self._intakes.end(intake, chain, keep=keep)

    async def _receive(
        self, client: KvClient, handle: KvHandle, intake: Intake, chain: PrefixChain
    ) -> None:
        """Writes what comes, while it comes, and no longer than computing it would take.

        The last writes are not waited for: the engine does them before it sees the request.

        Raises:
            TimeoutError. InternalError: what came is not what was asked for.
        """
        layers, loop = self._engine.runner.loaded.kv_layers, asyncio.get_running_loop()
        last = loop.time() + max(self._least, min(intake.seconds, _MOST_SECONDS))
        writes: deque[asyncio.Future[None]] = deque()
        async with asyncio.timeout_at(min(last, loop.time() + _CHUNK_SECONDS)) as limit:
            pull = client.pull(handle, layers, intake.start, intake.end)
            async with aclosing(pull) as chunks:
                async for chunk in chunks:
                    limit.reschedule(min(last, loop.time() + _CHUNK_SECONDS))
                    writes.append(self._write(intake, chunk.end, self._rows(chunk, chain)))
                    if len(writes) >= _AHEAD:
                        await writes.popleft()

    def _write(self, intake: Intake, end: int, rows: torch.Tensor) -> asyncio.Future[None]:
        return self._on_engine(lambda: self._intakes.write(intake, end, rows))

    def _check(self, handle: KvHandle, chain: PrefixChain) -> None:
        """Raises ModelMismatch or InternalError where a handle is not of what was asked for."""
        pool, loaded = self._engine.runner.pool, self._engine.runner.loaded
        shape = (handle.num_kv_heads, handle.head_dim, handle.dtype)
        own = (pool.num_kv_heads, pool.head_dim, dtype_name(pool.dtype))
        whole = set(loaded.kv_layers) <= set(handle.layers)
        if handle.model_fingerprint != self._identity or shape != own or not whole:
            raise ModelMismatch("it holds keys and values of another model")
        over = handle.prefix.length % BLOCK_TOKENS
        if over or not handle.prefix.length or not chain.names(handle.prefix):
            raise InternalError("it granted another prefix than was asked for")

    def _rows(self, chunk: KvChunk, chain: PrefixChain) -> torch.Tensor:
        """A chunk's numbers, copied: a busy engine would keep the holder waiting for its memory.

        Raises:
            InternalError: they are not what was asked for.
        """
        pool, loaded = self._engine.runner.pool, self._engine.runner.loaded
        if chunk.layers != loaded.kv_layers or chunk.dtype != dtype_name(pool.dtype):
            raise InternalError(f"layers {chunk.layers} came, in {chunk.dtype}")
        if chunk.prefix.length != chunk.end or chunk.end > len(chain):
            raise InternalError(f"positions up to {chunk.end} came with another name")
        # Between two borders of blocks a holder knows no names.
        named = chunk.prefix.hash or chunk.end % BLOCK_TOKENS == 0
        if named and not chain.names(chunk.prefix):
            raise InternalError(f"positions up to {chunk.end} came that are of another text")
        each = len(chunk.layers) * 2 * pool.num_kv_heads * pool.head_dim * pool.dtype.itemsize
        if len(chunk.data) != (chunk.end - chunk.start) * each:
            raise InternalError(f"{len(chunk.data)} bytes came for {chunk.end - chunk.start} rows")
        rows = as_tensor(chunk.data, chunk.dtype)
        rows = rows.clone() if chunk.shared else rows
        chunk.done()
        return rows

    def _on_engine(self, action: Callable[[], T]) -> asyncio.Future[T]:
        """Every wait for it is within the time of the whole."""
        return asyncio.wrap_future(self._engine.call(action))

    def _later(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _leave(client: KvClient, handle: KvHandle | None) -> None:
    """Gives a lease back, and closes the connection: the next holder is mostly another one, and a
    channel to a process that is gone waits before it tries again."""
    try:
        if handle is not None:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await client.release(handle)
    except (SlipstreamError, TimeoutError):
        pass
    finally:
        await client.close()
