"""What a run must have time for before it knows one plan, from a few steps of the full model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from slipstream.bench.records import Prompt
from slipstream.core.errors import ConfigurationError
from slipstream.engine.runner import ModelRunner
from slipstream.engine.step_cost import Steps
from slipstream.tune.budget import Budget, OutOfTime
from slipstream.tune.costs import REPEATS, VERIFY_ROWS, VerifyCost

_MOST_ROWS = VERIFY_ROWS[-1]
# In prefills, what `choose_shapes` takes: a hundred passes, some of 256 rows.
_SHAPES = 30
# For what is not computed here, as reading prompts and drawing tokens.
_MARGIN = 1.3


@dataclass(frozen=True, slots=True)
class Minimum:
    """Attributes:

    least: seconds of a whole run below which no plan can have been measured.
    enough: seconds in which one should have been; no promise.
    """

    least: float
    enough: float

    @contextmanager
    def held_by(self, budget: Budget) -> Iterator[None]:
        """For what must be done before a plan is known.

        Raises:
            ConfigurationError: the budget cannot hold it, or did not; with what would be enough.
        """
        try:
            if budget.seconds < self.least:
                raise OutOfTime
            yield
        except OutOfTime:
            raise ConfigurationError(
                f"--budget: {budget.seconds:g} s are too little to measure one plan, with"
                f" {budget.spent:.0f} s spent: {math.ceil(self.enough)}s should be enough for that,"
                " and a search takes several times as long; fewer prompts or shorter answers take"
                " less (--limit, --max-tokens)"
            ) from None


def forecast(
    runner: ModelRunner,
    prompts: Sequence[Prompt],
    max_tokens: int,
    budget: Budget,
    *,
    loading: float,
    resumed: bool,
) -> Minimum:
    """Shapes, answers, verify steps, and then one copy: loading it, timing its steps, drafting.

    Args:
        budget: of which the model's loading is spent; its clock times some passes.
        loading: seconds that it took.
        resumed: a search before has seen to all but the answers.
    """
    began = budget.spent
    with Steps(runner, _MOST_ROWS) as steps:
        prefill = budget.spent - began
        one, most = (_seconds(partial(steps.step, rows), budget) for rows in (1, _MOST_ROWS))
    step = VerifyCost((1, _MOST_ROWS), (one, max(one, most)))
    # A round more, which does not count: see `timed`.
    verify = (REPEATS + 1) * sum(map(step, VERIFY_ROWS))
    fit = (REPEATS + 1) * one
    # An answer may end at once, and drafts may all be right; or neither.
    least = budget.spent + (0.0 if resumed else loading + verify + fit)
    along = max_tokens * (step(len(prompts)) + len(prompts) * one)
    rest = 2 * loading + verify + 4 * fit + (2 * len(prompts) + _SHAPES) * prefill + along
    return Minimum(least, budget.spent + _MARGIN * rest)


def _seconds(work: Callable[[], object], budget: Budget) -> float:
    """The less of two times: whatever else the machine does can only add."""
    marks = [budget.spent]
    for _ in range(2):
        work()
        marks.append(budget.spent)
    return min(marks[1] - marks[0], marks[2] - marks[1])
