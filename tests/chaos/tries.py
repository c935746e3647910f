"""What clients have in common: gateways to choose from, patience, and what an error means."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.answers import Answer
from tests.chaos.history import StoreHistory

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0
# Another try is worth it: the server is not what it was, or not alone, for a moment.
_PASSING = frozenset(
    {
        "cancelled",
        "corrupted",
        "deadline_exceeded",
        "draining",
        "kv_not_found",
        "model_mismatch",
        "overloaded",
        "session_conflict",
        "store_unavailable",
        "stream_unread",
        "unavailable",
    }
)
_GENERATION_GONE = "generation_not_found"
_SESSION_GONE = "session_not_found"
_OUR_FAULT = "internal_error"


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where one gateway is reached."""

    http: str
    grpc: str


class Refused(Exception):
    """A server's answer that is an error: its code, and when another try is worth it."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.retry_after = retry_after

    @property
    def generation_gone(self) -> bool:
        return self.code == _GENERATION_GONE


def our_fault(message: str) -> Refused:
    return Refused(_OUR_FAULT, message)


class Broken(Exception):
    """The connection is gone, or has been silent for too long."""


class GaveUp(Exception):
    """The client's patience is over, or no try can help."""


@dataclass(slots=True)
class Tries:
    """One client's way through the gateways.

    Attributes:
        seconds: of patience for one generation.
        history: of the store; says what may be forgotten.
    """

    gateways: Sequence[Gateway]
    draw: random.Random
    history: StoreHistory
    seconds: float
    place: int = 0
    pause: float = _FIRST_PAUSE
    began: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    @property
    def gateway(self) -> Gateway:
        return self.gateways[self.place % len(self.gateways)]

    @property
    def left(self) -> float:
        """Seconds of patience."""
        return self.began + self.seconds - asyncio.get_running_loop().time()

    def start(self, since: float) -> None:
        """A new generation, at any gateway."""
        self.began, self.pause = since, _FIRST_PAUSE
        self.place = self.draw.randrange(len(self.gateways))

    def progress(self) -> None:
        """Something came: the next failure is a new one."""
        self.pause = _FIRST_PAUSE

    async def after(self, failure: Refused | Broken, answer: Answer) -> None:
        """Gets ready for the next try, from where the answer is or, if that is excused, anew.

        Raises:
            GaveUp: there is no next try.
        """
        if isinstance(failure, Refused):
            if failure.code == _SESSION_GONE:
                answer.session_gone = True
                raise GaveUp(str(failure))
            if failure.generation_gone and self.may_be_forgotten:
                answer.begin_again()
                answer.ways["begun again"] += 1
            elif failure.code == _OUR_FAULT:
                answer.complaints.append(str(failure))
            elif failure.code not in _PASSING:
                raise GaveUp(str(failure))
        await self._again(failure)

    def anew(self, answer: Answer) -> None:
        """Before a stream is asked for that has no event to resume behind: that is repeating it,
        unless some of the answer came already, which nobody shall need twice.

        Raises:
            GaveUp: some did, and the store was well.
        """
        if any(heard.text or heard.token_ids for heard in answer.choices.values()):
            if not self.may_be_forgotten:
                raise GaveUp("the stream broke, and its events had no ids to resume behind")
            answer.ways["begun again"] += 1
        answer.begin_again()

    async def _again(self, why: Exception) -> None:
        """Waits as long as it was told to, else a little longer each time; then another gateway.

        Raises:
            GaveUp: patience would be over by then.
        """
        told = why.retry_after if isinstance(why, Refused) else None
        pause = self.draw.uniform(0.5, 1.0) * self.pause if told is None else told
        if pause > self.left:
            raise GaveUp(f"not within {self.seconds:.0f} s: {why}")
        await asyncio.sleep(pause)
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)
        self.place += 1

    @property
    def may_be_forgotten(self) -> bool:
        """Whether the store may know nothing of this generation, and rightly so."""
        now = asyncio.get_running_loop().time()
        history = self.history
        return history.was_away(self.began, now) or history.was_emptied(self.began, now)
