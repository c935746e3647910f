"""What one stream has still to say: what waits becomes one message, however slow its reader."""

from __future__ import annotations

import asyncio

from verifier_service.generation import CommittedToken, Progress


class Outbox:
    """From the engine's progress to a stream's messages. Lives on the event loop.

    Holds no more than the tokens of one answer: the answer itself is bounded.
    """

    def __init__(self) -> None:
        self._tokens: list[CommittedToken] = []
        self._last: Progress | None = None
        self._filled = asyncio.Event()

    def put(self, progress: Progress) -> None:
        """Adds what a step did, behind what waits."""
        self._tokens += progress.tokens
        self._last = progress
        self._filled.set()

    async def take(self) -> Progress:
        """All that waits, in one; waits itself until there is something."""
        await self._filled.wait()
        self._filled.clear()
        last, tokens = self._last, tuple(self._tokens)
        assert last is not None, "it is filled"
        self._tokens = []
        return Progress(tokens, last.finish, last.error, last.counts, last.cached_prompt_tokens)
