"""One pull of keys and values: reads on the engine's thread, chunks for whoever sends them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch

from slipstream.core.errors import Unavailable
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.wire.proto import kv_pb2
from slipstream.wire.shared_memory import Ring
from verifier_service.engine import VerifierEngine
from verifier_service.kv_lease import Read, Rows

# Reads asked for before the first is sent: copying goes on while the network is busy.
_AHEAD = 4
_RING_POLL_SECONDS = 0.001
_CHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows, and where they stand in shared memory; None where they go into the message."""

    rows: Rows
    place: kv_pb2.SharedSlice | None


def _whole_blocks(start: int, count: int, end: int) -> int:
    """Up to the last border of a block, where there is one: prefixes have names there."""
    stop = start + count
    border = stop - stop % BLOCK_TOKENS
    return count if stop == end or border <= start else border - start


@dataclass(frozen=True, slots=True)
class _Asked:
    rows: asyncio.Future[Rows | None]
    place: kv_pb2.SharedSlice | None


class KvStream:
    """The chunks of one pull, in order. Lives on the event loop.

    Args:
        key: of the pull.
        begun: its beginning, which was posted to the engine already.
        row_bytes: of one position; `most`: positions in a chunk.
        ring: shared memory for the chunks of a known range.
    """

    def __init__(
        self,
        engine: VerifierEngine,
        key: object,
        begun: Future[None],
        row_bytes: int,
        most: int,
        ring: Ring | None,
    ) -> None:
        self._engine = engine
        self._key = key
        self._begun = asyncio.wrap_future(begun)
        # Of a pull that is cancelled first nobody asks whether it began.
        self._begun.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._row_bytes = row_bytes
        self._most = most
        self._ring = ring
        self._written = 0

    async def known(self, start: int, end: int) -> AsyncGenerator[Chunk]:
        """Positions [start, end), each chunk once it is computed.

        Raises:
            KvExpired, InvalidRequest, Unavailable.
        """
        asked: deque[_Asked] = deque()
        try:
            while start < end or asked:
                while start < end and len(asked) < _AHEAD:
                    count = _whole_blocks(start, min(self._most, end - start), end)
                    if not await self._room(count, wait=not asked):
                        break
                    asked.append(self._ask(start, start + count))
                    start += count
                first = asked.popleft()
                rows = await self._answer(first.rows)
                assert rows is not None, "a known range has no end but its own"
                yield Chunk(rows, first.place)
        finally:
            for ask in asked:
                ask.rows.cancel()

    async def following(self, start: int) -> AsyncGenerator[Chunk]:
        """What the sequence commits behind `start`, until it ends. Raises Unavailable."""
        self._ring = None
        while True:
            read = Read(self._key, start, None, self._most)
            rows = await self._answer(self._queue(read))
            if rows is None:
                return
            start = rows.end
            yield Chunk(rows, None)

    async def _room(self, count: int, *, wait: bool) -> bool:
        """Whether the ring has room for so many positions; waits for it where asked to."""
        ring = self._ring
        if ring is None:
            return True
        size = count * self._row_bytes
        if size > ring.size:
            self._ring = None
            return True
        while ring.place(self._written, size) is None:
            if not wait:
                return False
            await asyncio.sleep(_RING_POLL_SECONDS)
        return True

    def _ask(self, start: int, end: int) -> _Asked:
        """Queues the read of [start, end); there is room for it."""
        ring, size = self._ring, (end - start) * self._row_bytes
        place = None if ring is None else ring.place(self._written, size)
        if ring is None or place is None:
            return _Asked(self._queue(Read(self._key, start, end)), None)
        offset, self._written = place
        out = torch.from_numpy(ring.data[offset : offset + size])
        read = Read(self._key, start, end, out=out)
        shared = kv_pb2.SharedSlice(offset=offset, size=size, read=self._written)
        return _Asked(self._queue(read), shared)

    def _queue(self, read: Read) -> asyncio.Future[Rows | None]:
        self._engine.call(lambda: self._engine.kv.read(read))
        return asyncio.wrap_future(read.done)

    async def _answer(self, rows: asyncio.Future[Rows | None]) -> Rows | None:
        """Waits without a deadline of its own (the puller has one) for a living engine."""
        both: list[asyncio.Future[Any]] = [self._begun, rows]
        try:
            while (await asyncio.wait(both, timeout=_CHECK_SECONDS))[1]:
                if not self._engine.alive:
                    raise Unavailable("the verifier's engine has stopped")
            self._begun.result()
            return rows.result()
        finally:
            rows.cancel()
