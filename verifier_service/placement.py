"""The layout that verifier and drafter compute in. With `auto`, layouts compete in service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from verifier_service.contest import Contest
from verifier_service.layouts import Drafter, Layout, layouts

# Share of a new step in the moving average of those that carried prompts; from what share on they
# set the pace, and below which one they no longer do.
_NEW, _BUSY, _CALM = 1 / 16, 0.6, 0.3


@dataclass(frozen=True, slots=True)
class Cycle:
    """A step and the wait before it.

    Attributes:
        sequences: that decoded; `prompts`, those whose prompts were computed beside them.
        tokens: that were decoded; `seconds`, since the step before.
        promised: tokens per second that the length policy expects of the current layout; `drafts`,
            whether it has a use for any.
    """

    sequences: int
    tokens: int
    seconds: float
    promised: float = 0.0
    prompts: int = 0
    drafts: bool = True


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
        # Share of the steps that carry prompts, and whether that is most of them.
        self._prompts, self._busy = 0.0, False

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

    def for_prompts(self) -> Layout:
        """The layout for a step of prompts alone: they are as fast as there are cores. Their
        drafters may hear of them."""
        cores = self._own.cores
        able = (x for x in self._candidates if x.drafts and cores == set(x.verifier_cores))
        return next(able, self.layout)

    def cycled(self, cycle: Cycle) -> Layout:
        """A step is over. Returns the layout for the next."""
        if len(self._candidates) < 2 or not cycle.sequences:
            return self.layout
        self._prompts += _NEW * ((cycle.prompts > 0) - self._prompts)
        self._busy = self._prompts > (_CALM if self._busy else _BUSY)
        plain = self._candidates[-1]
        if self._busy and not plain.drafts:
            # Prompts need all cores, and what a step can carry beside them is nearly free.
            return plain
        contest = self._contest(cycle.sequences + cycle.prompts)
        if contest.playing is self.layout and not cycle.prompts:
            contest.count(cycle.tokens, cycle.seconds, cycle.promised, drafts=cycle.drafts)
        return contest.playing

    def _contest(self, sequences: int) -> Contest:
        """Batches of like size share a verdict: 1, 2 to 3, 4 to 7, ..."""
        size = sequences.bit_length()
        if size not in self._contests:
            # Drafts are worth the less, the more sequences share a step.
            over = [c.playing for n, c in self._contests.items() if n < size and c.over]
            plain = next((layout for layout in over if not layout.drafts), None)
            # In turn several would all wait for the slowest, and so would those without drafts.
            able = (each for each in self._candidates if size == 1 or not each.in_turn)
            self._contests[size] = Contest(tuple(able), plain)
        return self._contests[size]
