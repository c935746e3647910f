"""A deadline for each of many short waits, at the cost of one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

# So late a timer fires only where the event loop was held up.
_LAG_SECONDS = 0.02


class Watchdog:
    """Calls `bark` once, as soon as one wait takes too long.

    A wait costs an assignment before and after it; `asyncio.timeout` for each was a tenth of what a
    token costs the gateway. Time in which the event loop itself was held up is not counted: what is
    waited for may have come meanwhile.

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
        self.barked = False
        self._look_at(self._loop.time() + period)

    def wait(self, seconds: float) -> None:
        """From now on something is waited for, for at most so long."""
        self._until = self._loop.time() + seconds

    def rest(self) -> None:
        """It has come."""
        self._until = math.inf

    def close(self) -> None:
        self._timer.cancel()

    def _look_at(self, due: float) -> None:
        self._due = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        late = now - self._due
        if late > _LAG_SECONDS:
            # The loop's next turns bring what came meanwhile.
            self._until = max(self._until + late, now + min(late, self._period))
        if now >= self._until:
            self.barked = True
            self._bark()
        else:
            self._look_at(min(self._until, now + self._period))
