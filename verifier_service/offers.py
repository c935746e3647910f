"""A sequence that the drafter has not is offered to it again; refused ones ever more seldom."""

from __future__ import annotations

# Steps until the first new offer, twice as many after every refusal, and the most.
_AFTER, _LEAST_OFTEN = 32, 1024


class Offers:
    """Counts the steps of a refused sequence. One owner; not thread-safe."""

    def __init__(self) -> None:
        self._after = _AFTER
        self._left = 0

    def refused(self) -> None:
        """The drafter has no room for it now."""
        self._left = self._after
        self._after = min(2 * self._after, _LEAST_OFTEN)

    def later(self) -> None:
        """It was not offered, as there are no drafts now."""
        self._left = 1

    def due(self) -> bool:
        """Another step was made; whether the sequence is to be offered now."""
        if not self._left:
            return False
        self._left -= 1
        return not self._left
