"""An answer from its log, as somebody else writes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence

from gateway.continuation import Continuation, Piece
from gateway.course import Past, pieces_of
from gateway.runs.log import Known, Message
from gateway.runs.record import Record
from gateway.runs.records import Records

# Without a sign of life for so long, nobody runs it.
STALE_SECONDS = 3.0
_POLL_SECONDS = 0.075


class Follower:
    """Reads one generation's logs. One mutable object for each client that follows.

    Args:
        records: where the logs are.
        record: whose logs.
        continuations: fresh, all of the request's.
        seen: tokens of each that the client has.

    Attributes:
        known: what was last read of each log, by index.
        ended: continuations whose end was given out.
    """

    def __init__(
        self,
        records: Records,
        record: Record,
        continuations: Sequence[Continuation],
        seen: Sequence[int] = (),
    ) -> None:
        self._records = records
        self._record = record
        self._continuations = continuations
        self._seen = tuple(seen) or (0,) * len(continuations)
        self._lengths = dict.fromkeys(range(len(continuations)), 0)
        self._messages: list[list[Message]] = [[] for _ in continuations]
        self._since = time.monotonic()
        self.known: dict[int, Known | None] = {}
        self.ended: set[int] = set()

    @property
    def over(self) -> bool:
        """Whether all of it was given out."""
        return not self._lengths

    @property
    def alive(self) -> bool:
        """Whether somebody seemed to run it when the logs were last read."""
        return any(
            found is not None and found.whole and not found.released and found.age < STALE_SECONDS
            for index, found in self.known.items()
            if index in self._lengths
        )

    @property
    def absent(self) -> bool:
        """Whether some log was not there."""
        return any(self.known.get(index) is None for index in self._lengths)

    def seen(self) -> list[int]:
        """Tokens of each continuation that the client has by now."""
        given = [continuation.tokens for continuation in self._continuations]
        return [max(pair) for pair in zip(self._seen, given, strict=True)]

    def pasts(self) -> list[Past]:
        """All that was read."""
        pairs = zip(self._messages, self.seen(), strict=True)
        return [Past(tuple(messages), seen) for messages, seen in pairs]

    async def now(self) -> AsyncGenerator[Piece, None]:
        """What is there now and was not given out before. Raises StoreUnavailable."""
        logs = await self._records.logs(self._record, self._lengths)
        self.known.update(logs)
        for index, found in logs.items():
            if found is not None:
                self._lengths[index] = found.length
                for piece in self._read(index, found.messages):
                    yield piece
                    # All is there already: who left while it is told would not be noticed.
                    await asyncio.sleep(0)

    def _read(self, index: int, messages: Sequence[Message]) -> Iterator[Piece]:
        for message in messages:
            self._messages[index].append(message)
            for piece in pieces_of(self._continuations[index], message, self._seen[index]):
                if piece.finish_reason is not None:
                    self.ended.add(index)
                    del self._lengths[index]
                yield piece
                if piece.finish_reason is not None:
                    return

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All that comes, until it is over or nobody goes on with it.

        Raises:
            SlipstreamError: how it failed, or StoreUnavailable.
        """
        while True:
            async for piece in self.now():
                yield piece
            if self.absent or not self.alive:
                failure = await self._records.failure(self._record.request_id)
                if failure is not None and not self.over:
                    raise failure
            waits = self.absent and time.monotonic() - self._since < STALE_SECONDS
            if self.over or not (self.alive or waits):
                return
            await asyncio.sleep(_POLL_SECONDS)
