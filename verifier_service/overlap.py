"""How much of the time in which the verifier computes the drafter computes, too."""

from __future__ import annotations

from collections import deque

# Steps that the computing told by one message may lie in.
_STEPS = 16
# What the ratio of recent steps forgets with each of them.
_FORGET = 1 / 256


class Overlap:
    """Lays the drafter's computing over the verifier's steps.

    With each message the drafter says how many seconds it has computed in all; what was added since
    the one before is taken to lie right before the message came. The link's delay moves it, which
    evens out over steps.

    `heard` is for any one thread, `stepped` for the engine's; anybody may read the rest.

    Attributes:
        verify_seconds, overlap_seconds: in decoding steps, and the part beside the drafter.
        ratio: of the last some hundred steps.
    """

    def __init__(self) -> None:
        self.verify_seconds = self.overlap_seconds = 0.0
        self._recent_verify = self._recent_overlap = 0.0
        self._steps: deque[tuple[float, float]] = deque(maxlen=_STEPS)
        self._heard: deque[tuple[float, float]] = deque(maxlen=1024)
        self._told: float | None = None
        self._told_at = 0.0

    @property
    def ratio(self) -> float:
        """0 to 1."""
        return self._recent_overlap / self._recent_verify if self._recent_verify else 0.0

    def lost(self) -> None:
        """The next message is another drafter's."""
        self._told = None

    def heard(self, at: float, computed: float) -> None:
        """A message came at the time `at` of a drafter that has computed for so many seconds."""
        before, self._told = self._told, computed
        since, self._told_at = self._told_at, at
        if before is not None and computed > before:
            # Passes of a drafter in shards may run side by side.
            self._heard.append((max(since, at - (computed - before)), at))

    def stepped(self, began: float, ended: float) -> None:
        self._steps.append((began, ended))
        beside = 0.0
        while self._heard:
            beside += self._within_steps(*self._heard.popleft())
        self.verify_seconds += ended - began
        self.overlap_seconds += beside
        self._recent_verify += ended - began - _FORGET * self._recent_verify
        self._recent_overlap += beside - _FORGET * self._recent_overlap

    def _within_steps(self, since: float, until: float) -> float:
        inside = 0.0
        for began, ended in reversed(self._steps):
            if ended <= since:
                break
            inside += max(0.0, min(until, ended) - max(since, began))
        return inside
