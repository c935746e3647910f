"""A verifier that is told to stop: it takes nothing new, and lets what it has move or end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slipstream.core.errors import Draining
from verifier_service.outbox import Outbox

# Whoever moved comes for keys and values as soon as the other verifier has its request.
_LINGER_SECONDS = 1.0
_LOOK_SECONDS = 0.05


class Departure:
    """Knows the streams there are, and when the last of them has to be over. On the event loop.

    Args:
        pulls: how many pulls of keys and values are under way.
        clock: seconds.
    """

    def __init__(
        self,
        pulls: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pulls = pulls
        self._clock = clock
        self._streams: set[Outbox] = set()
        self._until = math.inf
        # When the last stream ended, or the last pull was seen.
        self._busy_until = -math.inf

    @property
    def begun(self) -> bool:
        return self._until < math.inf

    @property
    def seconds_left(self) -> float:
        """Of the grace; infinite before it has begun."""
        return max(0.0, self._until - self._clock())

    @contextmanager
    def stream(self, outbox: Outbox) -> Iterator[None]:
        """Around a stream. Raises Draining where no new ones are taken.

        Nothing is awaited between the question and the entry: a request that comes in the instant
        of the signal is either told of it or refused.
        """
        if self.begun:
            raise Draining("this verifier is about to stop and takes nothing new")
        self._streams.add(outbox)
        try:
            yield
        finally:
            self._streams.discard(outbox)
            self._busy_until = self._clock()

    def begin(self, grace: float) -> None:
        """From now on nothing new is taken, and every stream hears of it; once is enough."""
        if self.begun:
            return
        self._until = self._clock() + grace
        for outbox in self._streams:
            outbox.wake()

    async def over(self) -> None:
        """Until no stream is left and nobody has pulled for a while, or the grace is over.

        A verifier that had no stream for a while stops at once.
        """
        while self._clock() < self._until:
            if self._pulls():
                self._busy_until = self._clock()
            if not self._streams and self._clock() - self._busy_until >= _LINGER_SECONDS:
                return
            await asyncio.sleep(min(_LOOK_SECONDS, self.seconds_left))

    def cut(self) -> None:
        """Ends the streams that are left; their clients may resume elsewhere."""
        for outbox in self._streams:
            outbox.cut(Draining("this verifier stops; its grace is over"))
