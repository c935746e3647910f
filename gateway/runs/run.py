"""One run of a kept generation, in this process: what it journals, and what ends it early."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from gateway.continuation import Piece
from gateway.course import Course, Past
from gateway.runs.journal import Journal
from gateway.runs.log import RELEASED, Known, Message, Writer
from gateway.runs.record import Record, choices_of
from gateway.runs.records import log_key
from slipstream.core.errors import SlipstreamError

log = logging.getLogger(__name__)


class Run:
    """One mutable object for each run.

    Args:
        record: of the request; its id may still change until the logs are open.
        journal: takes what is decided.
        ttl: seconds for which logs are kept after each entry.
        lost: told, once, why its logs cannot be written any more: "fenced", "missing", or the
            journal's reason.
        key: the idempotency key that the request came with; empty: none.
        alone: whether no client hears of it. Then all messages are held until it ends, so that
            another try can go on from them.

    Attributes:
        record: the same.
        renewed: when the record was last put, on `time.monotonic()`'s clock.
        opened: whether its logs were ours at some time.
        heard: how many messages verifiers have sent.
        aborted: why it was ended from outside, where it was.
        fenced: whether somebody else has taken its logs over.
    """

    def __init__(
        self,
        record: Record,
        journal: Journal,
        ttl: float,
        lost: Callable[[Run, str], None],
        *,
        key: str = "",
        alone: bool = False,
    ) -> None:
        self.record = record
        self.key = key
        self.alone = alone
        self.renewed = time.monotonic()
        self.opened = False
        self.heard = 0
        self.aborted: SlipstreamError | None = None
        self.fenced = False
        self._journal = journal
        self._lost = lost
        self._losing = False
        self._waiting: asyncio.Task[Any] | None = None
        # A session's turn is stored before its last word is, or who reads that would tell of a turn
        # that may yet be lost. Any message may be the last.
        self._held: list[Message | None] = [None] * choices_of(record)
        self._messages: list[list[Message]] = [[] for _ in range(choices_of(record))]
        self._writers: list[Writer | None] = [
            Writer("", ttl, self._lose) for _ in range(choices_of(record))
        ]

    @property
    def id(self) -> str:
        return self.record.request_id

    def course(self, pasts: Sequence[Past] = ()) -> Course:
        """For the service; `pasts` are what is known already."""
        return Course(pasts=pasts, heard=self._hear, model_key=self.record.model_key)

    def pasts(self) -> list[Past]:
        """What was heard by now, where it is remembered."""
        return [Past(tuple(messages)) for messages in self._messages]

    def open(self, known: Sequence[Known]) -> None:
        """The logs are ours, and hold this: what follows is written behind it."""
        self.opened = True
        if self.aborted is not None or self._losing:
            return
        for index, found in enumerate(known):
            writer = self._writers[index]
            if self.alone:
                self._messages[index] = [*found.messages, *self._messages[index]]
            if writer is None or writer.closed:
                continue
            if found.ended or not found.whole:
                # Complete; or damaged, and then nothing can be added to it.
                self._journal.forget(writer)
                self._writers[index] = None
                continue
            writer.log = log_key(self.id, index)
            writer.open(found.fence, found.length)
            self._journal.add(writer)

    def _hear(self, index: int, message: Message) -> None:
        if message.finish_reason == RELEASED or not (message.tokens or message.finish_reason):
            return
        self.heard += 1
        if self.alone:
            self._messages[index].append(message)
        self._note(index, self._exchanged(index, message) if self.record.session_id else message)

    def _exchanged(self, index: int, message: Message | None) -> Message | None:
        held, self._held[index] = self._held[index], message
        return held

    def _note(self, index: int, message: Message | None) -> None:
        writer = self._writers[index]
        if writer is not None and message is not None:
            self._journal.note(writer, message)

    async def pieces(self, source: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
        """Those of `source`, until it is aborted.

        Raises:
            SlipstreamError: what `abort` was given, or the source's.
        """
        async with contextlib.aclosing(source):
            while (piece := await self._next(source)) is not None:
                if piece.finish_reason is not None:
                    self._end(piece.index)
                yield piece

    def _end(self, index: int) -> None:
        self._note(index, self._exchanged(index, None))
        writer = self._writers[index]
        if writer is not None:
            self._journal.end(writer)

    async def _next(self, source: AsyncGenerator[Piece, None]) -> Piece | None:
        if self.aborted is not None:
            raise self.aborted
        self._waiting = task = asyncio.current_task()
        try:
            return await anext(source, None)
        except asyncio.CancelledError:
            self._raise_if_aborted(task)
            raise
        finally:
            self._waiting = None

    async def pause(self, seconds: float) -> None:
        """Waits. Raises what `abort` was given."""
        self._raise_if_aborted()
        self._waiting = task = asyncio.current_task()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self._raise_if_aborted(task)
            raise
        finally:
            self._waiting = None

    def _raise_if_aborted(self, cancelled: asyncio.Task[Any] | None = None) -> None:
        """In the place of the cancellation that `abort` made, unless there is another one, too."""
        if self.aborted is not None and not (cancelled and cancelled.uncancel()):
            raise self.aborted from None

    def abort(self, failure: SlipstreamError) -> None:
        """Ends it from outside, with this error."""
        if self.aborted is None:
            self.aborted = failure
            self.forget()
            if self._waiting is not None:
                self._waiting.cancel()

    def _lose(self, reason: str) -> None:
        if not self._losing:
            self._losing = True
            self.fenced = reason == "fenced"
            self.forget()
            self._lost(self, reason)

    def forget(self) -> None:
        """Journals nothing any more."""
        for writer in self._writers:
            if writer is not None:
                self._journal.forget(writer)

    def release(self) -> None:
        """Lets go of what has not ended: whoever wants may go on from it at once."""
        for writer in self._writers:
            if writer is not None:
                self._journal.release(writer)

    async def stored(self, seconds: float) -> bool:
        """Whether the store has all of it, at the latest after so many seconds."""
        writers = [writer for writer in self._writers if writer is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for writer in writers:
                    await writer.settled.wait()
        return not self._losing and all(writer.stored for writer in writers)
