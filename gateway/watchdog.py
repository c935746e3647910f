"""A deadline for each of many short waits, at the cost of one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Watchdog:
    """Calls `bark` once, as soon as one wait takes too long.

    A wait costs an assignment before and after it; `asyncio.timeout` for each was a tenth of what a
    token costs the gateway.

    Args:
        bark: ends the wait.
        period: no wait is shorter than this, in seconds.

    Attributes:
        barked: whether it did.
    """

    def __init__(self, bark: Callable[[], object], period: float) -> None:
        self._bark = bark
        self._period = period
        self._loop = asyncio.get_running_loop()
        self._until = math.inf
        self._timer = self._loop.call_later(period, self._look)
        self.barked = False

    def wait(self, seconds: float) -> None:
        """From now on something is waited for, for at most so long."""
        self._until = self._loop.time() + seconds

    def rest(self) -> None:
        """It has come."""
        self._until = math.inf

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= self._until:
            self.barked = True
            self._bark()
        else:
            self._timer = self._loop.call_at(min(self._until, now + self._period), self._look)
