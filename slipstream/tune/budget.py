"""The time of a whole run: what is left of it, and whether a piece of work still fits in."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slipstream.core.errors import ConfigurationError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(duration: str) -> float:
    """Seconds of a budget such as 90s, 20m or 1.5h. Raises ConfigurationError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", duration.strip())
    if found is None or not float(found[1]):
        raise ConfigurationError(f"--budget is a number with s, m or h, as 20m; got {duration!r}")
    return float(found[1]) * _UNITS[found[2]]


class OutOfTime(Exception):
    """Nothing is left of the budget, or too little for what comes next.

    It ends a stage of a run, which goes on with what it has. It never leaves this package.
    """


class Budget:
    """Begins when it is made. One thread.

    Args:
        seconds: of the whole run; infinite: no bound.
        clock: seconds that never go back.

    Attributes:
        reserve: seconds at the end that are kept for a later stage.
    """

    def __init__(
        self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self.reserve = 0.0
        self._clock = clock
        self._began = clock()
        self._expected: dict[str, float] = {}
        self._longest: dict[str, float] = {}

    @property
    def spent(self) -> float:
        """Seconds since the beginning, less those in which it was paused."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds until the reserve begins; below 0 where it has begun."""
        return self.seconds - self.reserve - self.spent

    def check(self) -> None:
        """Raises OutOfTime: nothing is left."""
        if self.left <= 0:
            raise OutOfTime

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile costs no time."""
        before = self._clock()
        try:
            yield
        finally:
            self._began += self._clock() - before

    def expect(self, kind: str, seconds: float) -> None:
        """Says how long a unit will take, of which none has ended yet."""
        self._expected[kind] = seconds

    def expected(self, kind: str) -> float | None:
        """Seconds of the longest such unit so far, else what was said of it; None: not known."""
        return self._longest.get(kind, self._expected.get(kind))

    @contextmanager
    def unit(self, kind: str) -> Iterator[None]:
        """Work that cannot be interrupted, or is for nothing if it is. It is timed; the first of a
        kind of which nothing is known is begun in any case.

        Raises:
            OutOfTime: it would not end in time, as far as is known.
        """
        expected = self.expected(kind)
        if expected is not None and self.left <= expected:
            raise OutOfTime
        before = self._clock()
        yield
        self._longest[kind] = max(self._longest.get(kind, 0.0), self._clock() - before)
