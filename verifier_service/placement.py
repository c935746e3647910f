"""Where verifier and drafter compute: each on cores of its own, or both in turn on all of them.

On one small machine the two compete for cores and for memory bandwidth. Side by side they overlap,
each at half the machine's speed; taking turns, each has all of it but waits for the other. Which
is faster depends on model, machine and load, so `auto` lets the two ways compete in service.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger(__name__)
# A trial: stints of so many steps, in turn, so that easy and hard text come to both. Each way's
# first stint is for its estimates to settle and does not count.
_STINT, _STINTS = 8, 3
# Steps after which the loser gets another chance: load and text change.
_TRY_AGAIN = 2000
# Of what the best one promises after the first stints, a layout that promises less is given up
# there: a trial of it would cost more than the promises may be wrong.
_HOPELESS = 0.75


@dataclass(frozen=True, slots=True)
class Drafter:
    """Where a drafter may compute: a host by name, and its cores; none: another device."""

    host: str
    cores: frozenset[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Who computes where.

    Attributes:
        name: for people.
        verifier_cores, drafter_cores: empty leaves them as they are.
        burst: they take turns: the drafter makes a run while the verifier waits for it.
    """

    name: str
    verifier_cores: tuple[int, ...] = ()
    drafter_cores: tuple[int, ...] = ()
    burst: bool = False


def layouts(wanted: str, own: Drafter, drafter: Drafter | None) -> tuple[Layout, ...]:
    """The ways to compute that come into question.

    Args:
        wanted: separate, shared or auto.
        own: where the verifier computes.
        drafter: where its drafter does; None where there is none.
    """
    everything = tuple(sorted(own.cores))
    if drafter is None:
        return (Layout("alone", everything),)
    common = tuple(sorted(own.cores & drafter.cores)) if own.host == drafter.host else ()
    if not common:
        # Each has a device of its own, or nobody knows better than whoever said `shared`.
        return (Layout(wanted if wanted == "shared" else "separate", burst=wanted == "shared"),)
    half = (len(common) + 1) // 2
    apart = Layout("separate", common[:half], common[half:] or common)
    turns = Layout("shared", everything, tuple(sorted(drafter.cores)), burst=True)
    return {"separate": (apart,), "shared": (turns,)}.get(wanted, (turns, apart))


@dataclass(slots=True)
class _Score:
    tokens: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class _Contest:
    """Which of several layouts decodes faster, for one size of batch."""

    layouts: tuple[Layout, ...]
    steps: int = 0
    winner: Layout | None = None
    scores: dict[Layout, _Score] = field(default_factory=dict)
    promises: dict[Layout, float] = field(default_factory=dict)

    def current(self) -> Layout:
        if self.winner is not None:
            return self.winner
        return self.layouts[self.steps // _STINT % len(self.layouts)]

    def count(self, tokens: int, seconds: float, promised: float) -> None:
        """A step of the current layout is over, which promises so many tokens per second."""
        self.promises[self.current()] = promised
        round_ = self.steps // (_STINT * len(self.layouts))
        if self.winner is None and round_ and self.steps % _STINT:
            score = self.scores.setdefault(self.current(), _Score())
            score.tokens += tokens
            score.seconds += seconds
        self.steps += 1
        if self.winner is None and self.steps == _STINT * len(self.layouts):
            best, *others = sorted(self.promises.values(), reverse=True)
            if max(others) < _HOPELESS * best:
                self._decide(self.promises)
        elif self.winner is None and self.steps >= _STINT * _STINTS * len(self.layouts):
            self._decide({each: score.rate for each, score in self.scores.items()})
        elif self.winner is not None and self.steps >= _TRY_AGAIN:
            self.winner, self.steps, self.scores, self.promises = None, 0, {}, {}

    def _decide(self, rates: dict[Layout, float]) -> None:
        self.winner, self.steps = max(self.layouts, key=lambda each: rates[each]), 0
        told = ", ".join(f"{layout.name} {rate:.1f}" for layout, rate in rates.items())
        log.info("placement %s: %s tokens/s", self.winner.name, told)


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
        self._contests: dict[int, _Contest] = {}

    def pair(self, drafter: Drafter | None) -> Layout:
        """The layout to begin with, beside a drafter that has just come or (None) gone."""
        self._candidates = layouts(self._wanted, self._own, drafter)
        self._contests = {}
        return self._candidates[0]

    @property
    def on_trial(self) -> bool:
        """Whether layouts still compete, for some size of batch."""
        return any(contest.winner is None for contest in self._contests.values())

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
        contest = self._contests.setdefault(size, _Contest(self._candidates))
        if contest.current() is self.layout:
            contest.count(tokens, seconds, promised)
        return contest.current()
