"""Keys and values on their way into one sequence of one process, a whole drafter or a shard."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from drafter_service.kv_source import Source, Want
from slipstream.core.errors import InternalError
from slipstream.core.kv import KvChunk
from slipstream.core.prefix import Prefix
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.kv_rows import as_tensor, write_rows
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence

log = logging.getLogger(__name__)
Post = Callable[[Callable[[], None]], object]
# Chunks that came before the commits they belong to; more means that the commits are stuck.
_MOST_PENDING = 64


@dataclass(frozen=True, slots=True)
class Arrival:
    """How far the keys and values of one process have come.

    Attributes:
        prefix: names the text whose positions have all come; None where nothing new did.
        size: bytes that came with this, `shared`, whether through shared memory.
        needless: the process keeps no attention layers, and has all that it needs.
        failure: why no more will come; empty where that is no fault.
    """

    prefix: Prefix | None = None
    size: int = 0
    shared: bool = False
    needless: bool = False
    failure: str = ""


class Fetch:
    """The engine's thread owns it, but for the pull itself, which is the event loop's.

    Positions of the wanted prefix are written as they come: before they are all there nothing is
    computed, and what is missing then is computed over whatever was written. Those that follow
    wait for `take`.

    Args:
        source: gives what to pull from; called on the event loop.
        sequence: gets what comes; it has room for what is wanted, and for what is taken.
        most: its longest length.
        post: runs an action on the engine's thread between two steps.
        heard: called on the engine's thread.
    """

    def __init__(
        self,
        runner: ModelRunner,
        sequence: Sequence,
        most: int,
        want: Want,
        *,
        source: Callable[[], Source | None],
        loop: asyncio.AbstractEventLoop,
        post: Post,
        heard: Callable[[Arrival], None],
    ) -> None:
        self._runner, self._sequence, self._want = runner, sequence, want
        self._most = most
        self._source, self._loop, self._post, self._heard = source, loop, post, heard
        self._layers = runner.loaded.kv_layers
        self._places = torch.arange(len(self._layers), device=runner.loaded.device)
        self._written = 0
        self._pending: deque[tuple[KvChunk, torch.Tensor]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    # ---- the engine's thread ---------------------------------------------------------------

    @property
    def _table(self) -> BlockTable:
        assert self._sequence.table is not None, "a sequence that is fetched for has room"
        return self._sequence.table

    def start(self) -> None:
        if self._layers:
            self._loop.call_soon_threadsafe(self._begin)
        else:
            self._heard(Arrival(needless=True))

    def take(self, computed: int, end: int) -> None:
        """Writes what came behind the prefix, up to `end`; positions below `computed` are in the
        pool already."""
        if not self._layers:
            return
        if end > computed:
            self._runner.pool.enter(self._table, computed, end)
        while self._pending and self._pending[0][0].start < end:
            chunk, rows = self._pending[0]
            start, last = max(chunk.start, self._written), min(end, chunk.end)
            self._write(rows[:, :, start - chunk.start : last - chunk.start], start, last)
            if chunk.end > end:
                # The rest of it waits: other shards have not come so far.
                break
            self._pending.popleft()
            chunk.done()

    def stop(self) -> None:
        """No more comes, and what was not written is dropped."""
        if self._stopped:
            return
        self._stopped = True
        while self._pending:
            self._pending.popleft()[0].done()
        self._loop.call_soon_threadsafe(self._cancel)

    def _arrived(self, chunk: KvChunk) -> None:
        if self._stopped:
            chunk.done()
            return
        failure = ""
        try:
            rows = self._rows(chunk)
            if chunk.end <= self._want.prefix.length:
                self._runner.pool.enter(self._table, self._written, chunk.end)
                self._write(rows, chunk.start, chunk.end)
                chunk.done()
            else:
                self._pending.append((chunk, rows))
                failure = "behind" if len(self._pending) > _MOST_PENDING else ""
        except Exception:
            log.exception("keys and values that came are of no use")
            chunk.done()
            failure = "failed"
        arrival = Arrival(chunk.prefix, len(chunk.data), chunk.shared)
        self._heard(Arrival(failure=failure) if failure else arrival)

    def _ended(self, failure: str) -> None:
        if failure and not self._stopped:
            self._heard(Arrival(failure=failure))

    def _rows(self, chunk: KvChunk) -> torch.Tensor:
        """[layers, 2, positions, heads, dim]. Raises InternalError, or ValueError where that is not
        what has come."""
        pool, start, end = self._runner.pool, chunk.start, chunk.end
        if chunk.layers != self._layers:
            raise InternalError(f"layers {chunk.layers} came, not {self._layers}")
        if start < self._want.prefix.length < end:
            raise InternalError(f"positions {start} to {end} came in one piece")
        if end > self._most:
            raise InternalError(f"position {end} came, beyond the sequence's end")
        shape = (len(self._layers), 2, end - start, pool.num_kv_heads, pool.head_dim)
        data = as_tensor(chunk.data, chunk.dtype)
        if data.numel() != torch.Size(shape).numel():
            raise InternalError(f"{data.numel()} numbers came for {shape}")
        return data.view(shape)

    def _write(self, rows: torch.Tensor, start: int, end: int) -> None:
        write_rows(self._runner.pool, self._table, self._places, start, end, rows.contiguous())
        self._written = end

    # ---- the event loop --------------------------------------------------------------------

    def _begin(self) -> None:
        source = None if self._stopped else self._source()
        if source is None:
            return

        def arrived(chunk: KvChunk) -> None:
            self._post(partial(self._arrived, chunk))

        def ended(failure: str) -> None:
            self._post(partial(self._ended, failure))

        self._task = source.pull(self._want, arrived, ended)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
