"""One continuation's log: what is written to it, and what is read back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from slipstream.store import Append, LogView
from slipstream.wire.proto import types_pb2, verifier_pb2

Message = verifier_pb2.GenerateResponse
# In an entry of its own, with the writer's fence as `seed`: nobody goes on with the log.
RELEASED = types_pb2.FINISH_REASON_CANCELLED


@dataclass(slots=True, eq=False)
class Writer:
    """What waits to be written to one log. The journal alone changes it once it has it.

    Attributes:
        log: its key in the store.
        ttl: seconds for which the log is kept after each entry.
        lost: told when nothing more can be written: "fenced", "missing", or why it was dropped.
        fence, position: ours, and where the next entry begins; set by `open`.
        waiting: messages, in order.
        size: of them, in bytes.
        since: when the first of them came, on `time.monotonic()`'s clock.
        opened: whether entries can be written already.
        ending, releasing: whether the next entry says that the continuation has ended, or that
            nobody goes on with it here.
        stored: whether the store has all of it.
        settled: set once nothing more will be written.
    """

    log: str
    ttl: float
    lost: Callable[[str], None]
    fence: int = 1
    position: int = 0
    waiting: list[Message] = field(default_factory=list)
    size: int = 0
    since: float = 0.0
    opened: bool = False
    ending: bool = False
    releasing: bool = False
    stored: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    _beat: float = 0.0
    # The entry on its way, and the messages and bytes in it. Where nobody knows whether the store
    # has it, it is sent again as it was.
    _sent: Append | None = None
    _sent_messages: int = 0
    _sent_size: int = 0

    @property
    def closed(self) -> bool:
        """Whether entries can be written no more."""
        return self.settled.is_set()

    def open(self, fence: int, position: int) -> None:
        self.fence, self.position, self.opened = fence, position, True
        self._beat = time.monotonic()

    def take(self, message: Message, size: int) -> None:
        if not self.waiting:
            self.since = time.monotonic()
        self.waiting.append(message)
        self.size += size
        self.ending = bool(message.finish_reason)

    def finish(self) -> int:
        """Marks the log as complete; returns the bytes that this adds.

        A stop string ends a continuation at a message that does not say so: the log does.
        """
        if self.ending:
            return 0
        message = Message(finish_reason=types_pb2.FINISH_REASON_STOP)
        size = message.ByteSize()
        self.take(message, size)
        return size

    def due(self, beaten: float) -> bool:
        """Whether there is something to write, or was no sign of life since `beaten`."""
        return bool(self.waiting) or self.releasing or self._beat <= beaten

    def append(self) -> Append:
        """All that waits as one entry; or that it is let go; or a heartbeat."""
        if self._sent is not None:
            return self._sent
        if self.waiting:
            self._sent_messages, self._sent_size = len(self.waiting), self.size
            count = sum(len(message.tokens) for message in self.waiting)
            data = _joined(self.waiting).SerializeToString()
            self._sent = self._entry(count, data, ended=self.ending)
            return self._sent
        if self.releasing:
            return self._entry(
                0, Message(finish_reason=RELEASED, seed=self.fence).SerializeToString()
            )
        return self._entry(0, b"")

    def _entry(self, count: int, data: bytes, *, ended: bool = False) -> Append:
        return Append(self.log, self.fence, self.position, count, data, ended, self.ttl)

    def wrote(self, append: Append, now: float) -> int:
        """The entry is in the store; returns the bytes that wait no more."""
        size = 0
        if append is self._sent:
            size, self._sent = self._sent_size, None
            del self.waiting[: self._sent_messages]
            self.size -= size
        elif append.data:
            # It was let go.
            self.settled.set()
        self.since = self._beat = now
        self.position += append.count
        if append.ended:
            self.stored = True
            self.settled.set()
        return size

    def close(self) -> int:
        """Throws away what waits; returns its bytes."""
        size, self.size = self.size, 0
        self.waiting.clear()
        self.settled.set()
        return size


def _joined(messages: Sequence[Message]) -> Message:
    """One message with all tokens; the rest is the last one's."""
    joined = Message()
    for message in messages:
        joined.tokens.extend(message.tokens)
    last = Message()
    last.CopyFrom(messages[-1])
    last.ClearField("tokens")
    joined.MergeFrom(last)
    if not joined.cached_prompt_tokens:
        joined.cached_prompt_tokens = max(m.cached_prompt_tokens for m in messages)
    return joined


@dataclass(frozen=True, slots=True)
class Known:
    """What a log holds, from a position on.

    Attributes:
        messages: from that position on, as a verifier sent them or joined.
        length: position behind them.
        ended: whether nothing comes behind them.
        released: whether its writer let it go.
        whole: whether an entry can be written behind `length`: it is where the log ends.
        fence, age: the writer's; seconds since its last sign of life.
    """

    messages: tuple[Message, ...]
    length: int
    ended: bool
    released: bool
    whole: bool
    fence: int
    age: float


def read(view: LogView, start: int = 0) -> Known:
    """What a view holds from position `start` on. What does not follow on that is left out: a gap
    is computed again."""
    messages: list[Message] = []
    at, released = start, False
    for begin, data in view.entries:
        message = _parsed(data)
        if message is None or begin > at:
            break
        if message.finish_reason == RELEASED:
            released = begin == view.length and message.seed == view.fence
            continue
        end = begin + len(message.tokens)
        if end < at or (end == at and not message.finish_reason):
            continue
        del message.tokens[: at - begin]
        messages.append(message)
        at = end
    whole = at == view.length
    ended = view.ended and whole and bool(messages) and bool(messages[-1].finish_reason)
    return Known(tuple(messages), at, ended, released, whole, view.fence, view.age)


def _parsed(data: bytes) -> Message | None:
    try:
        return Message.FromString(data)
    except DecodeError:
        return None
