"""From a plan to accepted tokens per second."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.throughput import Placement, RunTally, best_throughput
from slipstream.engine.runner import ModelRunner
from slipstream.engine.step_cost import StepCost, fit_step_cost
from slipstream.tune.answers import Answer
from slipstream.tune.copies import Copies
from slipstream.tune.costs import REPEATS, VerifyCost
from slipstream.tune.drafting import MAX_RUN, Drafting, KvContext


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of a plan.

    Attributes:
        tokens_per_second: of the pipeline at the best draft length.
        speedup: the same over plain decoding.
        acceptance: of one draft, given those before it, at that length.
        by_position: acceptance at each place of a run.
        draft_seconds: of one draft step; verify_seconds: of a verify step of one row.
        prompts: how many prompts it comes from.
    """

    tokens_per_second: float
    speedup: float
    window: int
    acceptance: float
    by_position: tuple[float, ...]
    draft_seconds: float
    verify_seconds: float
    prompts: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Estimate:
        return cls(**data | {"by_position": tuple(data["by_position"])})


class Evaluator:
    """Measures plans on one machine, over one set of answers.

    Args:
        costs: fitted costs of draft steps by "precision/head precision", as dicts; those that are
            missing are measured and put in. A search keeps them, so that it can be repeated.
        slowdown: how many times as long a draft step takes where the drafter will run.
    """

    def __init__(
        self,
        full: ModelRunner,
        answers: Sequence[Answer],
        copies: Copies,
        verify: VerifyCost,
        costs: MutableMapping[str, dict[str, Any]],
        *,
        kv_context: KvContext,
        placement: Placement,
        slowdown: float = 1.0,
    ) -> None:
        self.verify = verify
        self.costs = costs
        self._full, self._answers, self._copies = full, answers, copies
        self._kv_context = kv_context
        self._placement = placement
        self._slowdown = slowdown

    def draft_cost(self, plan: LayerPlan) -> StepCost:
        name = f"{plan.precision}/{plan.head_precision}"
        if name not in self.costs:
            runner = self._copies.get(plan.precision, plan.head_precision)
            self.costs[name] = asdict(fit_step_cost(runner, REPEATS))
        return StepCost(**self.costs[name])

    def evaluate(self, plan: LayerPlan) -> Iterator[Estimate]:
        """Drafts along one prompt after the other; yields what is known after each.

        Raises:
            ConfigurationError: there is no prompt.
        """
        seconds = self._slowdown * self.draft_cost(plan)(plan.skips)
        copy = self._copies.get(plan.precision, plan.head_precision)
        drafting = Drafting(copy, self._full, self._kv_context)
        tally = RunTally()
        if not self._answers:
            raise ConfigurationError("there are no answers to draft along")
        for count, answer in enumerate(self._answers, start=1):
            tally += drafting.run(answer, plan.skips)
            yield self._estimate(tally, seconds, count)

    def _estimate(self, tally: RunTally, seconds: float, prompts: int) -> Estimate:
        best = best_throughput(
            tally, seconds, self.verify, placement=self._placement, max_window=MAX_RUN
        )
        plain = self.verify(1)
        return Estimate(
            tokens_per_second=best.tokens_per_second,
            speedup=best.tokens_per_second * plain,
            window=best.window,
            acceptance=best.acceptance,
            by_position=tally.by_position,
            draft_seconds=seconds,
            verify_seconds=plain,
            prompts=prompts,
        )
