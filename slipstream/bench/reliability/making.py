"""Makes sessions through the front door, some at a time, and forgets them."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import httpx

_AT_ONCE = 16
_TEXT = "Please remember this: {words} My number is {number}."
# Of a message: a short paragraph.
_WORDS = "the second lamp at the upper lock was repaired in spring, and the ledger says so. " * 4


@dataclass(slots=True)
class Makers:
    """Some clients of one gateway.

    Attributes:
        made: sessions whose turn was acknowledged as stored.
        refused: turns that were not.
        failure: what was said to the last of those.
    """

    client: httpx.AsyncClient
    model: str
    tokens: int
    made: int = 0
    refused: int = 0
    failure: str = ""
    _names: dict[str, list[str]] = field(default_factory=dict)

    async def make(self, count: int, name: str) -> None:
        """So many sessions of one turn, all different; `name` is in front of their ids."""
        names = self._names.setdefault(name, [])
        numbers = itertools.count()

        async def one() -> None:
            while (number := next(numbers)) < count:
                session = f"{name}-{number}"
                self.failure = await self._turn(session, number) or self.failure
                names.append(session)

        await asyncio.gather(*(one() for _ in range(min(_AT_ONCE, count))))

    async def forget(self, name: str) -> None:
        """Deletes those of a name, and counts them no more."""
        for session in self._names.pop(name, []):
            await self.client.delete(f"/v1/sessions/{session}")
            self.made -= 1

    async def stir(self, count: int) -> None:
        """Makes so many sessions without a turn, and deletes them: writes that leave nothing.

        Raises:
            httpx.HTTPError: the gateway did not answer, or refused it.
        """
        for number in range(count):
            session = f"stir-{number}"
            made = await self.client.post("/v1/sessions", json={"id": session})
            made.raise_for_status()
            (await self.client.delete(f"/v1/sessions/{session}")).raise_for_status()

    async def _turn(self, session: str, number: int) -> str:
        """What was wrong; empty where it is stored."""
        text = _TEXT.format(words=_WORDS, number=number)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.tokens,
            "session_id": session,
            "session_turn": 0,
        }
        try:
            answer = await self.client.post("/v1/chat/completions", json=body)
            said = answer.json()
            stored = answer.is_success and bool(said["session"]["stored"])
            wrong = "" if stored else str(said)[:300]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as failure:
            wrong = f"{type(failure).__name__}: {failure}"
        self.made += not wrong
        self.refused += bool(wrong)
        return wrong
