"""What steps of the full model cost on this machine, by their number of rows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from slipstream.engine.runner import ModelRunner
from slipstream.engine.step_cost import Steps, timed

REPEATS = 15
VERIFY_ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 17)


@dataclass(frozen=True, slots=True)
class VerifyCost:
    """Seconds of a verify step by its number of rows, measured at `rows`."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: int) -> float:
        """Straight lines between what was measured, and on beyond the last."""
        if len(self.rows) == 1:
            return self.seconds[0]
        place = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        (a, b), (low, high) = self.rows[place - 1 : place + 1], self.seconds[place - 1 : place + 1]
        return low + (high - low) * (rows - a) / (b - a)


def measure_verify(runner: ModelRunner, rows: Sequence[int] = VERIFY_ROWS) -> VerifyCost:
    """Times steps at about two hundred tokens of context."""
    with Steps(runner, max(rows)) as steps:
        found = timed({str(n): partial(steps.step, n) for n in rows}, REPEATS)
    seconds: list[float] = []
    for n in rows:
        # More rows never cost less: a dip would be noise, and the search would run after it.
        seconds.append(max([*seconds[-1:], found[str(n)]]))
    return VerifyCost(tuple(rows), tuple(seconds))
