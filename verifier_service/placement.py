"""The layout that verifier and drafter compute in. With `auto`, layouts compete in service."""

from __future__ import annotations

from collections.abc import Callable

from verifier_service.contest import Contest
from verifier_service.layouts import Drafter, Layout, layouts


class Placement:
    """The layout in use. Only the engine's thread touches it.

    Args:
        wanted: separate, shared or auto.
        own: where this process may compute.
        compute_on: moves this process to some cores; called on the engine's thread.
    """

    def __init__(
        self, wanted: str, own: Drafter, compute_on: Callable[[tuple[int, ...]], None]
    ) -> None:
        self.layout = Layout("alone", tuple(sorted(own.cores)))
        self._wanted = wanted
        self._own = own
        self._compute_on = compute_on
        self._candidates: tuple[Layout, ...] = (self.layout,)
        self._contests: dict[int, Contest] = {}

    def pair(self, drafter: Drafter | None) -> Layout:
        """The layout to begin with, beside a drafter that has just come or (None) gone."""
        self._candidates = layouts(self._wanted, self._own, drafter)
        self._contests = {}
        return self._candidates[0]

    @property
    def on_trial(self) -> bool:
        """Whether layouts still compete, for some size of batch."""
        return any(not contest.over for contest in self._contests.values())

    def use(self, layout: Layout) -> None:
        if layout.verifier_cores and layout.verifier_cores != self.layout.verifier_cores:
            self._compute_on(layout.verifier_cores)
        self.layout = layout

    def cycled(self, sequences: int, tokens: int, seconds: float, promised: float = 0.0) -> Layout:
        """A step is over, `seconds` after the one before it. Returns the layout for the next.

        Args:
            promised: tokens per second that the length policy expects of the current layout.
        """
        if len(self._candidates) < 2:
            return self.layout
        # Batches of like size share a verdict: 1, 2 to 3, 4 to 7, ...
        size = sequences.bit_length()
        contest = self._contests.setdefault(size, Contest(self._candidates))
        if contest.playing is self.layout:
            contest.count(tokens, seconds, promised)
        return contest.playing
