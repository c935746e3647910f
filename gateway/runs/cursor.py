"""Event ids: how much of an answer a client has.

`chatcmpl-x/17.,12`: of its two continuations 17 tokens and the chunk that ended it, and 12 tokens.
`chatcmpl-x/end`: everything but the mark that the stream is over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gateway.continuation import Piece
from slipstream.core.errors import InvalidParameter

HEADER = "Last-Event-ID"
_END = "end"
_COUNTS = r"[0-9]{1,9}\.?(?:,[0-9]{1,9}\.?){0,127}"
_EVENT_ID = re.compile(rf"([A-Za-z0-9._:-]{{1,200}})/({_END}|{_COUNTS})")


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a client has.

    Attributes:
        counts: tokens of each continuation, by index. The text that is the client's is what was
            final after so many tokens.
        ended: continuations whose end it has heard of.
        over: whether it has all of it, the usage included.
    """

    counts: tuple[int, ...]
    ended: frozenset[int] = frozenset()
    over: bool = False

    def complete(self, include_usage: bool) -> bool:
        """Whether only the mark that the stream is over can be missing."""
        return self.over or (len(self.ended) == len(self.counts) and not include_usage)

    def __str__(self) -> str:
        if self.over:
            return _END
        marks = ("." if index in self.ended else "" for index in range(len(self.counts)))
        return ",".join(f"{count}{mark}" for count, mark in zip(self.counts, marks, strict=True))


def split_event_id(event_id: str, param: str = HEADER) -> tuple[str, str]:
    """The request's id, and the cursor as it is written.

    Raises:
        InvalidParameter: it is not an event id.
    """
    match = _EVENT_ID.fullmatch(event_id)
    if match is None:
        raise InvalidParameter(
            f"{param} is not the id of an event: {event_id[:80]!r}; give it as it came", param=param
        )
    return match[1], match[2]


def parse_cursor(text: str, choices: int, most: int | None, param: str = HEADER) -> Cursor:
    """The cursor behind the slash of an event id.

    Args:
        choices: continuations of the request.
        most: tokens that one of them may have; None: not known.

    Raises:
        InvalidParameter: it cannot be one of this request's.
    """
    if text == _END:
        return Cursor((0,) * choices, frozenset(range(choices)), over=True)
    parts = text.split(",")
    counts = tuple(int(part.removesuffix(".")) for part in parts)
    if len(counts) != choices:
        raise InvalidParameter(
            f"{param} speaks of {len(counts)} choices; the request has {choices}", param=param
        )
    if most is not None and max(counts) > most:
        raise InvalidParameter(
            f"{param} speaks of {max(counts)} tokens; the request asked for at most {most}",
            param=param,
        )
    return Cursor(counts, frozenset(i for i, part in enumerate(parts) if part.endswith(".")))


class Trail:
    """The ids of a stream's events, as they are sent. One mutable object for each stream.

    Args:
        request_id: of the answer.
        cursor: what the client has already.
    """

    def __init__(self, request_id: str, cursor: Cursor) -> None:
        self._prefix = f"{request_id}/"
        self._counts = list(cursor.counts)
        self._ended = set(cursor.ended)
        # As in the text of a cursor: most events change one of them.
        self._parts = [
            f"{count}." if index in self._ended else str(count)
            for index, count in enumerate(self._counts)
        ]

    def took(self, piece: Piece) -> None:
        """What is sent next holds this piece, but not yet that it is the last one."""
        index, count = piece.index, piece.completion_tokens
        if count > self._counts[index]:
            self._counts[index] = count
            self._parts[index] = f"{count}." if index in self._ended else str(count)

    def ended(self, index: int) -> None:
        """What is sent next says that a continuation has ended."""
        self._ended.add(index)
        self._parts[index] = f"{self._counts[index]}."

    @property
    def id(self) -> str:
        """Of the event that is sent next."""
        return self._prefix + ",".join(self._parts)

    @property
    def last(self) -> str:
        """Of the event behind which nothing comes."""
        return self._prefix + _END
