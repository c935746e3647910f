"""While drafts are not worth their while they are tried again, ever more seldom."""

from __future__ import annotations

# In choices of a length: after so many a probe begins, after twice as many with every failure, and
# lasts until so many later.
_AFTER, _LEAST_OFTEN, _LASTS = 8, 128, 1


class Probes:
    """Counts choices of a length that left none. One owner; not thread-safe.

    Attributes:
        off: since drafts were last found worth it, or last tried.
        tried: probes that found nothing, one after the other.

    Args:
        soon: whether the first probe begins with the next choice.
    """

    def __init__(self, *, soon: bool = False) -> None:
        self.off = _AFTER - 1 if soon else 0
        self.tried = 0
        self._after = _AFTER

    @property
    def due(self) -> bool:
        """Whether a probe begins with this choice."""
        return self.off == self._after

    @property
    def on(self) -> bool:
        """Whether drafts are being tried."""
        return self.off >= self._after

    def count(self, worth: bool, *, rarely: bool = False) -> None:
        """Another choice, of which the estimates say whether drafts are worth their while.

        `rarely`: as if many probes had found nothing.
        """
        if worth:
            self.off, self.tried, self._after = 0, 0, _AFTER
            return
        self.off += 1
        if rarely:
            self._after = _LEAST_OFTEN
        if self.off >= self._after + _LASTS:
            self.off = 0
            self.tried += 1
            self._after = min(2 * self._after, _LEAST_OFTEN)
