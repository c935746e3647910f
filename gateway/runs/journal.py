"""What verifiers decide, on its way to the store: batched, bounded, off the path of a token.

Nobody waits for the journal. Where the store does not keep up, a log is dropped: whoever goes on
from it computes again what it does not hold, and the tokens come out the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from gateway.runs.log import Writer
from slipstream.core.errors import StoreUnavailable
from slipstream.store import Append, AppendResult, Store
from slipstream.wire.proto import verifier_pb2

log = logging.getLogger(__name__)
BEAT_SECONDS: Final = 1.0
_FLUSH_SECONDS = 0.1
_RETRY_SECONDS = 0.5
# Of one round trip.
_BATCH_LOGS = 256
_BATCH_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait to be written: bytes and messages of one log, and bytes of all."""

    log_bytes: int = 512 * 1024
    log_messages: int = 8192
    all_bytes: int = 32 * 1024 * 1024


class Journal:
    """One for the process. `start` begins to write, `close` writes what is left and ends.

    Args:
        store: takes the logs; each call of it ends within some bound.
        bounds: of what waits.

    Attributes:
        pending_bytes: that wait.
        dropped: logs that were given up, by the reason.
    """

    def __init__(self, store: Store, bounds: Bounds | None = None) -> None:
        self._store = store
        self._bounds = bounds or Bounds()
        # In the order in which they came; who has waited longest goes first.
        self._writers: dict[Writer, None] = {}
        self._some, self._urgent = asyncio.Event(), asyncio.Event()
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.pending_bytes = 0
        self.dropped: Counter[str] = Counter(full=0, gap=0)

    def start(self) -> None:
        self._task = asyncio.create_task(self._work(), name="journal")

    async def close(self, grace: float) -> None:
        """Lets go of all logs and writes what waits, for at most `grace` seconds."""
        for writer in list(self._writers):
            self.release(writer)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self._writers and await self._round():
                    pass
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def lag(self) -> float:
        """Seconds for which the oldest message has waited."""
        oldest = min((w.since for w in self._writers if w.waiting), default=None)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def add(self, writer: Writer) -> None:
        """From now on the writer's messages are written, once it is open, and it beats."""
        self._writers[writer] = None
        if writer.waiting:
            self._some.set()

    def note(self, writer: Writer, message: verifier_pb2.GenerateResponse) -> None:
        """Takes a message of an open or opening log. Does not block."""
        if writer.closed:
            return
        size = message.ByteSize()
        bounds = self._bounds
        if (
            writer.size + size > bounds.log_bytes
            or len(writer.waiting) >= bounds.log_messages
            or self.pending_bytes + size > bounds.all_bytes
        ):
            self.drop(writer, "full")
            return
        writer.take(message, size)
        self.pending_bytes += size
        self._some.set()
        if writer.ending:
            self._urgent.set()

    def end(self, writer: Writer) -> None:
        """The continuation has ended with what was noted: to be written at once."""
        if not writer.closed:
            self.pending_bytes += writer.finish()
            self._some.set()
            self._urgent.set()

    def release(self, writer: Writer) -> None:
        """Nobody goes on with it here: whoever wants may, without waiting. Written at once."""
        if writer.closed or writer.ending:
            return
        if not writer.opened:
            self._forget(writer)
            return
        writer.releasing = True
        self._some.set()
        self._urgent.set()

    def drop(self, writer: Writer, reason: str) -> None:
        """Gives a log up; it ends where the store has it."""
        if writer.closed:
            return
        self.dropped[reason] += 1
        log.warning("%s: no longer kept (%s)", writer.log, reason)
        self._forget(writer)
        writer.lost(reason)

    def forget(self, writer: Writer) -> None:
        """Nothing more of it is written, which is nobody's loss."""
        if not writer.closed:
            self._forget(writer)

    def _forget(self, writer: Writer) -> None:
        self.pending_bytes -= writer.close()
        self._writers.pop(writer, None)

    async def _work(self) -> None:
        while True:
            await _within(self._some, BEAT_SECONDS / 2)
            if self._some.is_set():
                await _within(self._urgent, _FLUSH_SECONDS)
            self._some.clear()
            self._urgent.clear()
            try:
                written = await self._round()
            except Exception:
                # The last line of defence: the journal must not end with one log's failure.
                log.exception("unexpected failure in the journal")
                written = False
            if not written:
                await asyncio.sleep(_RETRY_SECONDS)
                self._some.set()

    async def _round(self) -> bool:
        """Writes what waits, in one round trip if it is not much; whether the store took it."""
        async with self._turn:
            now = time.monotonic()
            due = [w for w in self._writers if w.opened and w.due(now - BEAT_SECONDS)]
            while due:
                batch: list[tuple[Writer, Append]] = []
                size = 0
                while due and len(batch) < _BATCH_LOGS and size < _BATCH_BYTES:
                    writer = due.pop(0)
                    batch.append((writer, writer.append()))
                    size += len(batch[-1][1].data)
                if not await self._write(batch):
                    return False
            return True

    async def _write(self, batch: list[tuple[Writer, Append]]) -> bool:
        try:
            results = await self._store.log_append([append for _, append in batch])
        except StoreUnavailable as failure:
            log.debug("the journal waits: %s", failure)
            return False
        now = time.monotonic()
        for (writer, append), result in zip(batch, results, strict=True):
            if not writer.closed:
                await self._settle(writer, append, result, now)
        return True

    async def _settle(self, writer: Writer, append: Append, told: AppendResult, now: float) -> None:
        result = await self._measure(writer, append) if told == "gap" else told
        if result == "ok":
            self.pending_bytes -= writer.wrote(append, now)
            if writer.closed:
                self._writers.pop(writer, None)
            elif writer.waiting or writer.releasing:
                self._some.set()
        elif result == "gap":
            self.drop(writer, "gap")
        elif result is not None:
            self._forget(writer)
            writer.lost(result)

    async def _measure(self, writer: Writer, append: Append) -> AppendResult | None:
        """What became of an entry that the log does not take: it may be there already, written by
        a call whose answer was lost."""
        try:
            view = await self._store.log_read(writer.log, append.start)
        except StoreUnavailable:
            # It will be told again.
            return None
        if view is None:
            return "missing"
        if view.fence != writer.fence:
            return "fenced"
        there = view.length == append.start + append.count and view.ended == append.ended
        return "ok" if there else "gap"


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
