"""A client that holds a conversation whose history the server keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.answers import Answer
from tests.chaos.asks import Ask
from tests.chaos.tries import Tries
from tests.chaos.verdict import Turn
from tests.chaos.workload import Dialogue

_STARTS = 8
_UNSTORED_PAUSE = 1.0
# Asks one turn: the ask, its idempotency key, and what names the session.
AskTurn = Callable[[Ask, str, dict[str, Any]], Awaitable[Answer]]


@dataclass(slots=True)
class SessionLog:
    """One session as its client knows it.

    Attributes:
        began: on the loop's clock.
        acknowledged: turns that the server said are stored.
        pending: the turn whose answer said no such thing.
    """

    id: str
    began: float
    acknowledged: list[Turn] = field(default_factory=list)
    pending: Turn | None = None


@dataclass(slots=True)
class Played:
    """What came of a dialogue.

    Attributes:
        answers: (turn, answer), all of them, also those of sessions that were forgotten.
        sessions: that it took, oldest first: more than one where the store forgot.
        unstored: answers that said that they are not in the store.
        failure: why it could not go on, beside what is wrong with its answers.
    """

    answers: list[tuple[int, Answer]] = field(default_factory=list)
    sessions: list[SessionLog] = field(default_factory=list)
    unstored: int = 0
    failure: str = ""


async def play(dialogue: Dialogue, prefix: str, tries: Tries, ask_turn: AskTurn) -> Played:
    """Plays all turns. Where the store forgot the session, which it may only if it came back empty
    or was away when the session began, again from the first one.

    Args:
        prefix: of the session's id.
    """
    clock = asyncio.get_running_loop().time
    played = Played()
    for start in range(_STARTS):
        session = SessionLog(f"{prefix}-{start}", clock())
        played.sessions.append(session)
        if await _play_from_start(dialogue, session, played, tries, ask_turn):
            return played
        if played.failure:
            return played
        await asyncio.sleep(_UNSTORED_PAUSE)
    played.failure = f"{_STARTS} sessions were forgotten"
    return played


async def _play_from_start(
    dialogue: Dialogue, session: SessionLog, played: Played, tries: Tries, ask_turn: AskTurn
) -> bool:
    """Whether all turns were answered and stored; else another session is needed, or `played` says
    why that would be no use."""
    clock = asyncio.get_running_loop().time
    for turn, ask in enumerate(dialogue.turns):
        key = f"{session.id}-{turn}"
        extra = {"session_id": session.id, "session_turn": turn}
        began = clock()
        answer = await ask_turn(ask, key, extra)
        if answer.session_gone:
            if not tries.history.was_emptied(session.began, clock()):
                played.answers.append((turn, answer))
                played.failure = f"session {session.id} is unknown before turn {turn}"
            return False
        played.answers.append((turn, answer))
        if answer.failure:
            played.failure = f"turn {turn}: {answer.failure}"
            return False
        said = Turn(ask.prompt[-1][1], answer.choices[0].text)
        if answer.session is None or not answer.session.get("stored"):
            session.pending = said
            played.unstored += 1
            history, now = tries.history, clock()
            if not (history.was_away(began, now) or history.was_emptied(session.began, now)):
                played.failure = f"turn {turn} is not stored: {answer.session}"
            # Nobody has what the next turn would continue.
            return False
        session.acknowledged.append(said)
    return True
