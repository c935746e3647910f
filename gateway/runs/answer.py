"""What a front door gets to write: pieces, and what goes around them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from gateway.continuation import Piece
from gateway.request import GenerationRequest
from gateway.runs.cursor import Cursor, Trail
from gateway.runs.record import Record, choices_of


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, or the rest of it.

    Attributes:
        request: as it was first asked.
        record: of it; None: it is not kept.
        pieces: behind the cursor.
        cursor: what the client has; None: nothing.
        include_usage: whether a stream ends with the usage, in a chunk of its own.
        opened: tells whether the record is there, where that is not known from the beginning.
        resumable: whether streams are resumed here at all.
    """

    request: GenerationRequest
    record: Record | None
    pieces: AsyncGenerator[Piece, None]
    cursor: Cursor | None
    include_usage: bool
    opened: asyncio.Future[bool] | None = None
    resumable: bool = True

    @property
    def id(self) -> str:
        """Of the answer. Once it is known whether it can be resumed, it is the record's."""
        return self.request.request_id if self.record is None else self.record.request_id

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        return int(time.time()) if self.record is None else int(self.record.created_unix)

    @property
    def choices(self) -> int:
        return len(self.request.prompts) * self.request.n

    async def trail(self) -> Trail | None:
        """For the ids of a stream's events; None: it cannot be resumed. To be asked before the
        first event is sent; the store is waited for, within its bound."""
        if self.record is None or not self.resumable:
            return None
        if self.opened is not None and not await asyncio.shield(self.opened):
            return None
        start = self.cursor or Cursor((0,) * choices_of(self.record))
        return Trail(self.record.request_id, start)


def plain(
    request: GenerationRequest, pieces: AsyncGenerator[Piece, None], include_usage: bool
) -> Answer:
    """One that is not kept."""
    return Answer(request, None, pieces, None, include_usage)
