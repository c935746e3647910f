"""A contest of layouts in service: which one decodes faster, at what cost of finding out."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from verifier_service.layouts import Layout

log = logging.getLogger(__name__)
# Steps that another layout than the leading one is tried for at a time. Each one's first stint is
# for its estimates to settle and does not count, nor does the first step of any.
_STINT = 16
# Trials are far enough apart that they cost at most this share of the time.
_COST = 0.05
# Of what the leading layout reaches, one that reaches less is given up: by what both promise, then
# by what they have shown after one trial of it, after two, ...; after the last one in any case.
_HOPELESS = (0.5, 0.6, 0.75, 0.9, 1.0)
# Steps after which the losers get another chance, as load and text change; twice as many when the
# verdict was the same as before, and the most.
_TRY_AGAIN, _MOST_SELDOM = 1000, 8000
# Steps without drafts after which a winner is taken for one that has no use for them.
_NO_USE = 32


@dataclass(slots=True)
class _Score:
    tokens: int = 0
    seconds: float = 0.0


class Contest:
    """Of two or more layouts, for one size of batch. The leading one decodes most of the time.

    Attributes:
        playing: the layout of the next step.
        over: whether there is a verdict; it holds for some thousand steps.

    Args:
        verdict: to begin with, where there is reason for one.
    """

    def __init__(self, layouts: tuple[Layout, ...], verdict: Layout | None = None) -> None:
        self._again = _TRY_AGAIN
        # Steps of the present stint, and in a row without drafts.
        self._steps = self._idle = 0
        self._begin(layouts)
        if verdict is not None:
            self.over, self._leader = True, verdict
            self._play(verdict, self._again)

    def _begin(self, layouts: tuple[Layout, ...]) -> None:
        """First stints are in the order given."""
        self.over = False
        self._layouts = layouts
        self._champion = self._leader = layouts[0]
        # How many have had their first stint.
        self._settled = 0
        # Of those that still compete.
        self._trials = dict.fromkeys(layouts, 0)
        self._scores: dict[Layout, _Score] = {}
        self._promises: dict[Layout, float] = {}
        self._play(layouts[0], _STINT)

    def count(self, tokens: int, seconds: float, promised: float, *, drafts: bool) -> None:
        """A step of the layout that plays is over.

        Args:
            promised: tokens per second that it promises.
            drafts: whether it had a use for any.
        """
        self._promises[self.playing] = promised
        self._steps += 1
        self._idle = 0 if drafts else self._idle + 1
        if self.over and self._idle >= _NO_USE:
            self._leave_it_to_plain()
        if self._settled == len(self._layouts) and self._steps > 1:
            score = self._scores.setdefault(self.playing, _Score())
            score.tokens += tokens
            score.seconds += seconds
        if self._steps < self._length:
            return
        if self.over:
            # The winner first, whom a stint costs nothing.
            losers = (each for each in self._layouts if each is not self._leader)
            self._begin((self._leader, *losers))
        elif self._settled < len(self._layouts):
            self._settle()
        elif self.playing is self._leader:
            self._play(self._challenger(), _STINT)
        else:
            self._trials[self.playing] += 1
            self._lead()

    def _settle(self) -> None:
        """Somebody's first stint is over."""
        self._settled += 1
        if self._settled < len(self._layouts):
            self._play(self._layouts[self._settled], _STINT)
        else:
            self._lead()

    def _lead(self) -> None:
        """The best so far plays, for good or until the next trial is worth its cost.

        A stint of another that reaches the share s of the leader's rate costs as much time as
        1 / s - 1 stints of the leader's.
        """
        rates = self._rates()
        self._leader = max(self._trials, key=lambda each: rates[each])
        # Where nothing is known nothing is lost by looking.
        best = rates[self._leader]
        shares = {each: rates[each] / best if best else 1.0 for each in self._trials}
        for each in [each for each in self._trials if each is not self._leader]:
            tried = min(self._trials[each], len(_HOPELESS) - 1)
            if tried == len(_HOPELESS) - 1 or shares[each] < _HOPELESS[tried]:
                del self._trials[each]
        if len(self._trials) == 1:
            self._decide(rates)
            return
        share = shares[self._challenger()]
        behind = 1.0 / share - 1.0 if share else float(_TRY_AGAIN)
        self._play(self._leader, min(_TRY_AGAIN, round(_STINT * max(1.0, behind / _COST))))

    def _decide(self, rates: dict[Layout, float]) -> None:
        self.over = True
        told = ", ".join(f"{layout.name} {rate:.1f}" for layout, rate in rates.items())
        log.info("placement %s: %s tokens/s", self._leader.name, told)
        same = self._leader is self._champion
        self._play(self._leader, self._again)
        self._again = min(2 * self._again, _MOST_SELDOM) if same else _TRY_AGAIN

    def _leave_it_to_plain(self) -> None:
        """Without drafts the layout made for that is at least as good as the winner."""
        plain = [each for each in self._layouts if not each.drafts]
        if plain and self._leader.drafts:
            self._leader = plain[0]
            self._play(self._leader, self._length)

    def _rates(self) -> dict[Layout, float]:
        """Tokens per second: measured, or promised until all that compete have been tried."""
        if not self._trials.keys() <= self._scores.keys():
            return {each: self._promises[each] for each in self._layouts}
        return {
            each: s.tokens / s.seconds if s.seconds else 0.0 for each, s in self._scores.items()
        }

    def _challenger(self) -> Layout:
        """Of those that compete with the leader, the one that was tried least."""
        others = [each for each in self._trials if each is not self._leader]
        return min(others, key=lambda each: self._trials[each])

    def _play(self, layout: Layout, steps: int) -> None:
        self.playing, self._length = layout, steps
        self._steps = self._idle = 0
