"""Drafting on the verifier's keys and values: fetched by handle instead of computed.

A drafter that skips sublayers computes a context of its own that drifts from the full model's. The
full model's keys and values for the layers that it keeps are a better context, and it need not
prefill. Whatever goes wrong, it computes the rest itself: tokens never depend on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from drafter_service.draft import Draft, Key, Part
from slipstream.core.draft import Commit
from slipstream.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    KvExpired,
    KvHolderRestarted,
    KvNotFound,
    ModelMismatch,
    Overloaded,
    SlipstreamError,
    Unavailable,
)
from slipstream.core.kv import KvChunk, KvHandle
from slipstream.core.prefix import Prefix
from slipstream.engine.kv_rows import as_tensor, write_rows
from slipstream.engine.runner import ModelRunner
from slipstream.wire.kv_client import KvClient

log = logging.getLogger(__name__)
KvMode = Literal["own", "prompt", "commit"]
_LEASE_SECONDS = 30.0
# Drafts are of no use before the verifier has computed the prompt, so until its first commit
# nothing is lost by waiting, however long it queues.
_MOST_PULL_SECONDS = 600.0
_LEAST_WAIT_SECONDS = 0.5
_GOODBYE_SECONDS = 1.0
# What a position is taken to cost to prefill until the drafter has prefilled some.
_GUESSED_PREFILL_SECONDS = 0.001
# Chunks that came before the commits they belong to; more means that the commits are stuck.
_MOST_PENDING = 64
_REASONS: dict[type[SlipstreamError], str] = {
    KvExpired: "expired",
    KvHolderRestarted: "restarted",
    KvNotFound: "not_found",
    ModelMismatch: "model_mismatch",
    Overloaded: "overloaded",
    Unavailable: "cut",
    Cancelled: "cut",
    DeadlineExceeded: "slow",
}


@dataclass(slots=True)
class KvCounters:
    """Totals since the start. Written by the engine's thread, read by anyone."""

    pulls: int = 0
    pulled_positions: int = 0
    pulled_bytes: int = 0
    shared_bytes: int = 0
    pull_seconds: float = 0.0
    pull_wait_seconds: float = 0.0
    refreshed_positions: int = 0
    refreshed_bytes: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Holder:
    """A verifier that holds keys and values, and the calls to it. Of the event loop."""

    client: KvClient
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def run(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(call)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


@dataclass(slots=True, eq=False)
class _Load:
    """A sequence whose context is on its way, or followed. The engine's thread owns it.

    Attributes:
        prefix: of the positions to fetch before the first draft.
        pending: chunks whose commits were not heard yet.
        task: the pull, of the event loop.
        ready: when the verifier was heard to have all of the prefix.
    """

    draft: Draft
    holder: _Holder
    prefix: Prefix
    started: float
    pending: deque[KvChunk] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    ready: float | None = None
    ended: bool = False


class KvContext(Part):
    """Fetches the context of sequences from the verifiers that they are of.

    Args:
        mode: own computes it; prompt fetches what is there when a sequence is opened; commit also
            takes over every committed position afterwards.
        least_wait: seconds that a pull always gets.
    """

    def __init__(
        self,
        runner: ModelRunner,
        mode: KvMode,
        *,
        share_memory: bool = True,
        least_wait: float = _LEAST_WAIT_SECONDS,
    ) -> None:
        self.mode = mode
        self.counters = KvCounters()
        self._runner = runner
        self._layers = runner.loaded.kv_layers
        self._places = torch.arange(len(self._layers), device=runner.loaded.device)
        self._share_memory = share_memory
        self._least_wait = least_wait
        self._loop = asyncio.get_running_loop()
        self._holders: dict[int, _Holder] = {}
        self._loads: dict[Key, _Load] = {}
        self._post: Callable[[Callable[[], None]], object]
        self._prefill_seconds: Callable[[], float]

    # ---- the event loop --------------------------------------------------------------------

    def attach(
        self, post: Callable[[Callable[[], None]], object], prefill_seconds: Callable[[], float]
    ) -> None:
        """Before the first sequence is opened.

        Args:
            post: runs an action on the engine's thread between two steps.
            prefill_seconds: of the drafter's own prefill for one position, as measured; 0 unknown.
        """
        self._post, self._prefill_seconds = post, prefill_seconds

    def connect(self, connection: int, address: str) -> None:
        """A verifier is there; empty where it gives no keys and values away."""
        if address and self.mode != "own" and self._layers:
            self._holders[connection] = _Holder(KvClient(address, share_memory=self._share_memory))

    async def disconnect(self, connection: int) -> None:
        """Ends what is under way, gives leases back, then closes the channel: gRPC is not safe to
        close below a running call."""
        holder = self._holders.pop(connection, None)
        if holder is None:
            return
        for task in holder.tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_SECONDS):
                while holder.tasks:
                    await asyncio.wait(holder.tasks)
        await holder.client.close()

    def _begin(self, load: _Load) -> None:
        if not load.ended:
            load.task = load.holder.run(self._pull(load))

    async def _pull(self, load: _Load) -> None:
        reason, handle, client = "", None, load.holder.client
        try:
            async with asyncio.timeout(_MOST_PULL_SECONDS) as limit:
                handle = await client.acquire(
                    self._runner.loaded.fingerprint,
                    load.prefix,
                    sequence_id=load.draft.key.sequence_id,
                    lease_seconds=_LEASE_SECONDS,
                )
                self._check(handle)
                end, follow = load.prefix.length, self.mode == "commit"
                pull = client.pull(handle, self._layers, 0, end, follow=follow)
                async with contextlib.aclosing(pull) as chunks:
                    async for chunk in chunks:
                        if chunk.end >= end:
                            # What follows comes for as long as the sequence lives.
                            limit.reschedule(None)
                        self._post(partial(self._arrived, load, chunk))
        except SlipstreamError as failure:
            reason = _REASONS.get(type(failure), "failed")
            log.log(
                logging.WARNING if reason in ("failed", "model_mismatch") else logging.INFO,
                "no context for sequence %s: %s", load.draft.key, failure.message,
            )  # fmt: skip
        except TimeoutError:
            reason = "slow"
        except Exception:
            log.exception("fetching the context of sequence %s failed", load.draft.key)
            reason = "failed"
        finally:
            if handle is not None:
                load.holder.run(self._release(client, handle))
        self._post(partial(self._stop, load, reason))

    async def _release(self, client: KvClient, handle: KvHandle) -> None:
        with contextlib.suppress(SlipstreamError):
            await client.release(handle)

    def _check(self, handle: KvHandle) -> None:
        """Raises ModelMismatch where the handle's keys and values are not of our model's shape."""
        pool, loaded = self._runner.pool, self._runner.loaded
        same = handle.model_fingerprint == loaded.fingerprint
        shape = (handle.num_kv_heads, handle.head_dim) == (pool.num_kv_heads, pool.head_dim)
        if not (same and shape and set(self._layers) <= set(handle.layers)):
            raise ModelMismatch(f"{handle.holder} holds keys and values of another model")

    # ---- the engine's thread ---------------------------------------------------------------

    def opened(self, draft: Draft) -> None:
        holder = self._holders.get(draft.key.connection)
        sequence, length = draft.sequence, len(draft.sequence) - 1
        if holder is None or length < 1:
            return
        if sequence.table is None:
            sequence.table = self._runner.pool.allocate(draft.max_length)
        if sequence.table is None:
            self.counters.fallbacks["no_room"] += 1
            return
        # The last position is the drafter's own: its first draft comes from there.
        load = _Load(draft, holder, sequence.chain.at(length), time.monotonic())
        self._loads[draft.key] = load
        draft.loading = True
        self._loop.call_soon_threadsafe(self._begin, load)

    def committed(self, draft: Draft, command: Commit, lost: int) -> None:  # noqa: ARG002 a hook
        load = self._loads.get(draft.key)
        if load is None:
            return
        self._take(load)
        if draft.loading and load.ready is None:
            # From now on drafts are missed. Waiting as long as computing would take costs at most
            # twice the better of the two.
            load.ready = time.monotonic()
            missing = load.prefix.length - draft.sequence.computed
            each = self._prefill_seconds() or _GUESSED_PREFILL_SECONDS
            wait = max(self._least_wait, missing * each)
            give_up = partial(self._post, partial(self._too_slow, load))
            self._loop.call_soon_threadsafe(self._loop.call_later, wait, give_up)

    def closed(self, draft: Draft) -> None:
        load = self._loads.get(draft.key)
        if load is not None:
            self._stop(load, "")

    def _arrived(self, load: _Load, chunk: KvChunk) -> None:
        if load.ended:
            chunk.done()
            return
        load.pending.append(chunk)
        self._take(load)
        if len(load.pending) > _MOST_PENDING:
            self._stop(load, "behind")

    def _take(self, load: _Load) -> None:
        """Writes the chunks whose positions are committed; drops those of another text."""
        draft, pending = load.draft, load.pending
        while not load.ended and pending and pending[0].end <= draft.committed:
            chunk = pending.popleft()
            try:
                if draft.sequence.chain.names(chunk.prefix):
                    self._write(load, chunk)
            except Exception:
                log.exception("the context of sequence %s could not be written", draft.key)
                self._stop(load, "failed")
            finally:
                chunk.done()

    def _write(self, load: _Load, chunk: KvChunk) -> None:
        draft, sequence = load.draft, load.draft.sequence
        computed = sequence.computed
        if chunk.start > computed or sequence.table is None:
            return
        if chunk.layers != self._layers:
            raise InternalError(f"layers {chunk.layers} came, not {self._layers}")
        if chunk.end > computed:
            self._runner.pool.enter(sequence.table, computed, chunk.end)
        data = as_tensor(chunk.data, chunk.dtype)
        write_rows(self._runner.pool, sequence.table, self._places, chunk.start, chunk.end, data)
        sequence.computed = max(computed, min(chunk.end, len(sequence) - 1))
        self._count(draft, chunk)
        if draft.loading and sequence.computed >= load.prefix.length:
            self._loaded(load)

    def _loaded(self, load: _Load) -> None:
        now, counters = time.monotonic(), self.counters
        load.draft.loading = False
        counters.pulls += 1
        counters.pull_seconds += now - load.started
        counters.pull_wait_seconds += now - (load.ready or now)

    def _too_slow(self, load: _Load) -> None:
        if load.draft.loading and not load.ended:
            self._stop(load, "slow")

    def _stop(self, load: _Load, reason: str) -> None:
        """No more comes for a sequence: what is missing the drafter computes itself."""
        if load.ended:
            return
        load.ended = True
        load.draft.loading = False
        if reason:
            self.counters.fallbacks[reason] += 1
        del self._loads[load.draft.key]
        while load.pending:
            load.pending.popleft().done()
        self._loop.call_soon_threadsafe(self._cancel, load)

    def _cancel(self, load: _Load) -> None:
        if load.task is not None:
            load.task.cancel()

    def _count(self, draft: Draft, chunk: KvChunk) -> None:
        counters, count, size = self.counters, chunk.end - chunk.start, len(chunk.data)
        if draft.loading:
            counters.pulled_positions += count
            counters.pulled_bytes += size
            counters.shared_bytes += size if chunk.shared else 0
        else:
            counters.refreshed_positions += count
            counters.refreshed_bytes += size
