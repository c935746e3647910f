"""Which skip sets an adaptive drafter tries, and when one is better than the current one."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from drafter_service.draft import Draft
from slipstream.core.layer_plan import Skips
from slipstream.core.throughput import RunTally, best_throughput
from slipstream.engine.step_cost import StepCost

# Tokens of a run, and so rows of a spare pass: a draft never waits for more than a short one.
RUN = 8
# Runs after which a candidate that is behind is dropped, and after which one that is ahead wins.
_FIRST_LOOK, _ENOUGH = 4, 12
# How much more it must promise: the next look, at other text, would undo a smaller lead.
_MARGIN = 1.02
# Share of the candidates that skip nothing.
_WAY_BACK = 0.1


@dataclass(slots=True)
class Trial:
    """A candidate beside the current set, both judged on the same runs.

    Attributes:
        ours, theirs: how the runs of the candidate and of the current set fared.
        judged: for each sequence, up to where its tokens were used.
        pending: the run that the candidate has yet to make: sequence and first token.
    """

    candidate: Skips
    ours: RunTally = field(default_factory=RunTally)
    theirs: RunTally = field(default_factory=RunTally)
    judged: dict[Draft, int] = field(default_factory=dict)
    pending: tuple[Draft, int] | None = None

    def verdict(self, current: Skips, cost: StepCost, verify_seconds: float) -> bool | None:
        """Whether the candidate is better, by what both promise beside the verifier's steps; None
        where that is not clear yet."""

        def worth(skips: Skips, tally: RunTally) -> float:
            seconds = cost(skips)
            found = best_throughput(tally, seconds, lambda _: verify_seconds, max_window=RUN)
            return found.tokens_per_second

        runs = self.ours.drafted[0]
        ours, theirs = worth(self.candidate, self.ours), worth(current, self.theirs)
        if runs >= _ENOUGH:
            return ours > _MARGIN * theirs
        return False if runs >= _FIRST_LOOK and ours < theirs else None


class Candidates:
    """Suggests sets close to the current one; remembers those that were dropped of late.

    A step of evolution instead of SWIFT's Bayesian optimisation: text changes under way, so what
    was measured long ago says little, and a service needs no optimiser beside it.
    """

    def __init__(self, layers: int, seed: int) -> None:
        self._layers = layers
        self._random = random.Random(seed)
        self._dropped: deque[Skips] = deque(maxlen=4 * layers)

    def drop(self, skips: Skips) -> None:
        self._dropped.append(skips)

    def suggest(self, current: Skips) -> Skips:
        """A set that is not the current one; at times none skipped, the way back to good drafts."""
        for _ in range(100):
            found = Skips() if self._random.random() < _WAY_BACK else self._changed(current)
            if found != current and found not in self._dropped:
                return found
        self._dropped.clear()
        return self._flipped(current, 1)

    def _changed(self, skips: Skips) -> Skips:
        return self._flipped(skips, self._random.choice((1, 1, 2, 3)))

    def _flipped(self, skips: Skips, count: int) -> Skips:
        """`count` sublayers flipped; the first and the last layer are always kept."""
        attention, mlp = set(skips.attention), set(skips.mlp)
        for _ in range(count):
            layer = self._random.randrange(1, max(2, self._layers - 1))
            self._random.choice((attention, mlp)).symmetric_difference_update({layer})
        return Skips(frozenset(attention), frozenset(mlp))
