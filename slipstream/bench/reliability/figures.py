"""The arithmetic: spreads over repeats, pauses in a stream, growth by session."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over repeats."""

    median: float
    least: float
    most: float
    count: int


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of those that are there; None of none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(median(known), min(known), max(known), len(known))


def cell(found: Spread | None, form: str = ".1f", scale: float = 1.0) -> str:
    """`median (least..most)`, or the one value; `-` of none."""
    if found is None:
        return "-"
    middle, least, most = (
        format(scale * value, form) for value in (found.median, found.least, found.most)
    )
    return middle if found.count == 1 else f"{middle} ({least}..{most})"


def ratios(over: Sequence[float | None], under: Sequence[float | None]) -> list[float]:
    """Pair by pair; pairs of which one is missing, or whose second is 0, are left out."""
    return [a / b for a, b in zip(over, under, strict=True) if a is not None and b]


def differences(of: Sequence[float | None], than: Sequence[float | None]) -> list[float]:
    """Pair by pair; pairs of which one is missing are left out."""
    return [a - b for a, b in zip(of, than, strict=True) if a is not None and b is not None]


@dataclass(frozen=True, slots=True)
class Pause:
    """What a client sees of a blow to the one that serves it. Times in seconds.

    Attributes:
        seconds: the longest gap between chunks that ended after the blow.
        since: from the blow to the chunk before that gap; negative where nothing came in between.
        before, longest_before: median and longest of the gaps until the blow.
    """

    seconds: float
    since: float
    before: float
    longest_before: float


def pause(arrivals: Sequence[float], blow: float) -> Pause | None:
    """None where no chunk came after the blow, or too few before it to tell their pace.

    Args:
        arrivals: of the chunks, ascending, on the clock of `blow`.
    """
    gaps = list(itertools.pairwise(arrivals))
    earlier = [b - a for a, b in gaps if b <= blow]
    later = [(b - a, a) for a, b in gaps if b > blow]
    if not earlier or not later:
        return None
    longest, begin = max(later)
    return Pause(longest, begin - blow, median(earlier), max(earlier))


@dataclass(frozen=True, slots=True)
class Growth:
    """Of something by session, in bytes a session: over all, and over either half."""

    whole: float
    first: float
    second: float

    @property
    def bend(self) -> float | None:
        """How much more the later ones take than the earlier; 1 is linear. None where the first
        half took nothing: no growth to compare with."""
        return self.second / self.first if self.first > 0 else None


def growth(points: Sequence[tuple[int, float]]) -> Growth | None:
    """None of fewer than three points.

    Args:
        points: (sessions, bytes), with sessions ascending; the halves meet at the one nearest to
            the middle.
    """
    if len(points) < 3:
        return None
    first, last = points[0], points[-1]
    middle = min(points[1:-1], key=lambda point: abs(2 * point[0] - first[0] - last[0]))
    return Growth(_slope(first, last), _slope(first, middle), _slope(middle, last))


def _slope(start: tuple[int, float], end: tuple[int, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
