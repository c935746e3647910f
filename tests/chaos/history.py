"""What was disturbed when: it tells apart what a client may be refused from what it was promised.

A store that is away cannot take a record, and one that comes back empty has forgotten all. Only in
such times may a generation be begun again, or a session be unknown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# After the store is well again: until breakers have closed, and what was begun meanwhile is over.
_AFTERMATH = 8.0


@dataclass(slots=True)
class StoreHistory:
    """Of the session store. Times on one clock, in seconds.

    Attributes:
        away: from when until when somebody could not reach it, or only late.
        emptied: when it forgot everything.
    """

    away: list[tuple[float, float]] = field(default_factory=list)
    emptied: list[float] = field(default_factory=list)

    def leaves(self, now: float) -> int:
        """It cannot be reached from now on; returns the number to say `is_back` with."""
        self.away.append((now, math.inf))
        return len(self.away) - 1

    def is_back(self, number: int, now: float) -> None:
        self.away[number] = (self.away[number][0], now)

    def was_away(self, since: float, until: float) -> bool:
        """Whether what was begun, or tried, in between may have met a store that was not there."""
        return any(a <= until and since <= b + _AFTERMATH for a, b in self.away)

    def was_emptied(self, since: float, until: float) -> bool:
        return any(since <= moment <= until for moment in self.emptied)
