"""While drafts are not worth their while they are tried again, ever more seldom."""

from __future__ import annotations

# After so many steps, twice as many after every failure, and for so many steps.
_AFTER, _LEAST_OFTEN, _STEPS = 32, 512, 4


class Probes:
    """Counts the steps without drafts. One owner; not thread-safe.

    Attributes:
        steps_off: since drafts were last found worth it, or last tried.
    """

    def __init__(self) -> None:
        self.steps_off = 0
        self._after = _AFTER

    @property
    def due(self) -> bool:
        """Whether a probe begins with this step."""
        return self.steps_off == self._after

    @property
    def on(self) -> bool:
        """Whether drafts are being tried."""
        return self.steps_off >= self._after

    def count(self, worth: bool) -> None:
        """Another step, of which the estimates say whether drafts are worth their while."""
        if worth:
            self.steps_off, self._after = 0, _AFTER
            return
        self.steps_off += 1
        if self.steps_off >= self._after + _STEPS:
            self.steps_off = 0
            self._after = min(2 * self._after, _LEAST_OFTEN)
