"""How long a forward pass takes, by its number of rows: measured while drafting."""

from __future__ import annotations

# Passes of up to so many rows take alike: kernels work on 1, 2, 4 or 8 rows at once. And how many
# times a pass of one row such a pass takes, where it was never tried: rather too much, so that it
# is tried where it would pay all the same.
_ROWS = (1, 2, 3, 4, 8, 16, 24, 32)
_PRIOR = (1.0, 1.15, 1.3, 1.4, 2.2, 3.5, 5.0, 6.5)
MOST_ROWS = _ROWS[-1]
# A row less than the most of its class saves this share: attention and the draw are by row.
_ROW_SHARE = 0.02

_STEP = 0.1
# A pass that took longer was interrupted, or compiled something.
_MOST = 2.0
# What one pass says of passes with other numbers of rows: a figure from a bad moment, on which
# such passes are no longer tried, is forgotten within some hundred passes.
_HINT = 0.01


class PassSeconds:
    """A moving average for each class of passes. One owner; not thread-safe."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: list[float | None] = [None] * len(_ROWS)

    def estimate(self, rows: int) -> float:
        """Seconds of a pass with `rows` rows; relative to a pass of one where none was timed."""
        wanted = self._class(rows)
        return self._of_class(wanted) * self._share(rows, wanted)

    def observe(self, rows: int, seconds: float) -> None:
        """A pass of `rows` rows took `seconds`. Passes with more than MOST_ROWS are not counted."""
        if rows > MOST_ROWS:
            return
        this = self._class(rows)
        before = self._of_class(this)
        seconds /= self._share(rows, this)
        if any(known is not None for known in self._seconds):
            seconds = before + _STEP * (min(seconds, _MOST * before) - before)
        self._seconds[this] = seconds
        for i, known in enumerate(self._seconds):
            if known is not None and i != this:
                expected = seconds * _PRIOR[i] / _PRIOR[this]
                self._seconds[i] = known + _HINT * (expected - known)

    def _of_class(self, wanted: int) -> float:
        known = [i for i, seconds in enumerate(self._seconds) if seconds is not None]
        if not known:
            return _PRIOR[wanted]
        nearest = min(known, key=lambda i: abs(i - wanted))
        seconds = self._seconds[nearest]
        assert seconds is not None
        return seconds * _PRIOR[wanted] / _PRIOR[nearest]

    @staticmethod
    def _share(rows: int, of_class: int) -> float:
        return 1.0 - _ROW_SHARE * max(0, _ROWS[of_class] - rows)

    @staticmethod
    def _class(rows: int) -> int:
        return next((i for i, most in enumerate(_ROWS) if rows <= most), len(_ROWS) - 1)
