"""How long a forward pass takes, by its number of rows: measured while drafting."""

from __future__ import annotations

from bisect import bisect_left

# Passes with up to so many rows make a class: kernels work on 1, 2, 4 or 8 rows at once. And how
# many times a pass of one row such a pass takes where none was timed yet, with straight lines
# between: from int4 products on a CPU, of which a row costs more than of most others.
_ROWS = (1, 2, 3, 4, 8, 16, 24, 32)
_SHAPE = (1.0, 1.15, 1.35, 1.5, 2.0, 3.3, 4.6, 6.0)
MOST_ROWS = _ROWS[-1]

_STEP = 0.1
# A pass that took longer than this many times the usual was interrupted, or compiled something.
_MOST = 2.0
# What one pass says of passes of other classes: a figure from a bad moment, on which such passes
# are no longer tried, is forgotten within some hundred passes.
_HINT = 0.01


class PassSeconds:
    """For each class of passes, a moving average of its seconds over what the shape says.

    One owner; not thread-safe.
    """

    __slots__ = ("_scales",)

    def __init__(self) -> None:
        self._scales: list[float | None] = [None] * len(_ROWS)

    def estimate(self, rows: int) -> float:
        """Seconds of a pass with `rows` rows; relative to a pass of one where none was timed."""
        return self._scale(_class(rows)) * _shape(rows)

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of `rows` rows took `seconds`. Passes with more than MOST_ROWS are not counted."""
        if rows > MOST_ROWS:
            return
        this, scale = _class(rows), seconds / _shape(rows)
        if any(known is not None for known in self._scales):
            before = self._scale(this)
            scale = before + _STEP * (min(scale, _MOST * before) - before)
        self._scales[this] = scale
        for other, known in enumerate(self._scales):
            if known is not None and other != this:
                self._scales[other] = known + _HINT * (scale - known)

    def _scale(self, wanted: int) -> float:
        """Of the nearest class that was timed."""
        known = [
            (abs(i - wanted), scale) for i, scale in enumerate(self._scales) if scale is not None
        ]
        return min(known)[1] if known else 1.0


def _class(rows: int) -> int:
    return min(bisect_left(_ROWS, rows), len(_ROWS) - 1)


def _shape(rows: int) -> float:
    """A pass of `rows` rows over a pass of one, by the straight lines."""
    upper = max(1, _class(rows))
    (low, high), (start, end) = _ROWS[upper - 1 : upper + 1], _SHAPE[upper - 1 : upper + 1]
    return start + (end - start) * (rows - low) / (high - low)
