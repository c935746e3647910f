"""What one stream has still to say: what waits becomes few messages, however slow its reader."""

from __future__ import annotations

import asyncio
from collections import deque

from slipstream.core.errors import SlipstreamError
from verifier_service.generation import CommittedToken, Progress

# Most tokens of a message: with 20 log probabilities each some 17 KB, less than what a stream may
# send ahead. So a client that reads slowly but steadily takes a message now and then, and is told
# from one that reads nothing.
MESSAGE_TOKENS = 64


class Outbox:
    """From the engine's progress to a stream's messages. Lives on the event loop.

    Holds no more than the tokens of one answer: the answer itself is bounded.
    """

    def __init__(self) -> None:
        self._tokens: deque[CommittedToken] = deque()
        self._last: Progress | None = None
        self._cut: SlipstreamError | None = None
        self._filled = asyncio.Event()

    def put(self, progress: Progress) -> None:
        """Adds what a step did, behind what waits."""
        self._tokens += progress.tokens
        self._last = progress
        self._filled.set()

    def wake(self) -> None:
        """Whoever waits for something to say looks up, although there may be nothing."""
        self._filled.set()

    def cut(self, error: SlipstreamError) -> None:
        """Whatever waits is not said any more; the stream ends with `error`."""
        self._cut = error
        self._filled.set()

    async def take(self) -> Progress | None:
        """All that waits, or as much as a message holds; waits itself until there is something.

        Returns:
            None where it was woken for nothing.

        Raises:
            SlipstreamError: the stream is cut.
        """
        await self._filled.wait()
        if self._cut is not None:
            raise self._cut
        last = self._last
        if last is None:
            self._filled.clear()
            return None
        count = min(len(self._tokens), MESSAGE_TOKENS)
        tokens = tuple(self._tokens.popleft() for _ in range(count))
        if self._tokens:
            return Progress(tokens, None, None, last.counts, last.cached_prompt_tokens)
        self._filled.clear()
        self._last = None
        return Progress(tokens, last.finish, last.error, last.counts, last.cached_prompt_tokens)
