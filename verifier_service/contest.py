"""A contest of layouts in service: which one decodes faster, at what cost of finding out."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from verifier_service.layouts import Layout

log = logging.getLogger(__name__)
# Steps that another layout than the leading one is tried for at a time. Each one's first stint is
# for its estimates to settle and does not count, nor does the first step of any.
_STINT = 8
# Stints of a trial, far enough apart that they cost at most this share of the time.
_STINTS, _COST = 4, 0.05
# Steps after which the loser gets another chance: load and text change.
_TRY_AGAIN = 2000
# Of what the leading layout reaches, one that reaches less is given up: by what they promise after
# their first stints, and by what they have shown after so many more.
_HOPELESS, _ENOUGH = 0.75, 2


@dataclass(slots=True)
class _Score:
    tokens: int = 0
    seconds: float = 0.0


class Contest:
    """Of two or more layouts, for one size of batch. The leading one decodes most of the time.

    Attributes:
        playing: the layout of the next step.
        over: whether there is a verdict; it holds for some thousand steps.
    """

    def __init__(self, layouts: tuple[Layout, ...]) -> None:
        self._begin(layouts)

    def _begin(self, layouts: tuple[Layout, ...]) -> None:
        """First stints are in the order given."""
        self.over = False
        self._layouts = layouts
        self._leader = layouts[0]
        # Layouts that have had their first stint, and trials since.
        self._settled = self._trials = 0
        self._scores: dict[Layout, _Score] = {}
        self._promises: dict[Layout, float] = {}
        self._play(layouts[0], _STINT)

    def count(self, tokens: int, seconds: float, promised: float) -> None:
        """A step of the layout that plays is over; it promises so many tokens per second."""
        self._promises[self.playing] = promised
        self._steps += 1
        if self._settled == len(self._layouts) and self._steps > 1:
            score = self._scores.setdefault(self.playing, _Score())
            score.tokens += tokens
            score.seconds += seconds
        if self._steps < self._length:
            return
        if self.over:
            # The winner first, whom a stint costs nothing.
            self._begin((self._leader, *self._others()))
        elif self._settled < len(self._layouts):
            self._settle()
        elif self.playing is self._leader:
            others = self._others()
            self._play(others[self._trials % len(others)], _STINT)
        else:
            self._trials += 1
            self._lead(hopeless=self._trials >= _ENOUGH * (len(self._layouts) - 1))

    def _settle(self) -> None:
        """Somebody's first stint is over."""
        self._settled += 1
        if self._settled < len(self._layouts):
            self._play(self._layouts[self._settled], _STINT)
        else:
            self._lead(hopeless=True)

    def _lead(self, *, hopeless: bool) -> None:
        """The best so far plays, for good or until the next trial is worth its cost.

        A stint of another that reaches the share s of the leader's rate costs as much time as
        1 / s - 1 stints of the leader's.

        Args:
            hopeless: whether a bad loser is given up.
        """
        rates = self._rates()
        self._leader = max(self._layouts, key=lambda each: rates[each])
        best = rates[self._leader]
        # Where nothing is known nothing is lost by looking.
        share = max(rates[each] for each in self._others()) / best if best else 1.0
        enough = self._trials >= _STINTS * (len(self._layouts) - 1)
        if enough or (hopeless and share < _HOPELESS):
            self.over = True
            told = ", ".join(f"{layout.name} {rate:.1f}" for layout, rate in rates.items())
            log.info("placement %s: %s tokens/s", self._leader.name, told)
            self._play(self._leader, _TRY_AGAIN)
            return
        behind = 1.0 / share - 1.0 if share else float(_TRY_AGAIN)
        self._play(self._leader, min(_TRY_AGAIN, round(_STINT * max(1.0, behind / _COST))))

    def _rates(self) -> dict[Layout, float]:
        """Tokens per second: measured, or promised until all have been tried."""
        if len(self._scores) < len(self._layouts):
            return {each: self._promises[each] for each in self._layouts}
        return {
            each: s.tokens / s.seconds if s.seconds else 0.0 for each, s in self._scores.items()
        }

    def _others(self) -> list[Layout]:
        return [each for each in self._layouts if each is not self._leader]

    def _play(self, layout: Layout, steps: int) -> None:
        self.playing, self._length, self._steps = layout, steps, 0
