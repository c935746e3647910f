"""Makes sessions through the front door, some at a time."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass

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
    _stirred: int = 0

    async def make(self, count: int, name: str) -> None:
        """So many sessions of one turn, all different; `name` is in front of their ids."""
        numbers = itertools.count()

        async def one() -> None:
            while (number := next(numbers)) < count:
                session = f"{name}-{number}"
                self.failure = await self._turn(session, number) or self.failure

        await asyncio.gather(*(one() for _ in range(min(_AT_ONCE, count))))

    def begin(self) -> None:
        """Counts from here on. What was made before expires like the rest: a deleted session would
        leave its name taken for some minutes."""
        self.made = self.refused = 0

    async def stir(self, count: int) -> None:
        """Makes so many sessions that expire at once: writes that soon leave nothing.

        Raises:
            httpx.HTTPError: the gateway did not answer, or refused it.
        """
        for number in range(count):
            body = {"id": f"stir-{self._stirred + number}", "ttl": 0.1}
            made = await self.client.post("/v1/sessions", json=body)
            made.raise_for_status()
        self._stirred += count

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
