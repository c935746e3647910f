"""The search: plans without skipping, one sublayer at a time, the best of these together, and
from there Bayesian optimisation (TPE, as Optuna has it).

Everything that was tried is in the study's storage; what comes next follows from it and from the
seed alone, so a search that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from slipstream.core.layer_plan import LayerPlan
from slipstream.tune.budget import Budget, OutOfTime
from slipstream.tune.evaluate import Estimate
from slipstream.tune.space import Space

# Prompts before a plan may be given up, and how far behind the best of then it may be to go on:
# two answers of sixty tokens tell a speed to a few percent.
_PATIENCE, _BEHIND = 2, 0.1
_FEWEST_CHOICES = 8
_STAGES = ("whole", "sweep", "together", "search")
_ESTIMATE, _STAGE = "estimate", "stage"
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
# What a generator of NumPy's takes as a seed is below this.
_SEEDS = 2**32


class Evaluate(Protocol):
    """Yields what is known of a plan, better with each prompt. The same for the same plan.

    May raise OutOfTime.
    """

    def __call__(self, plan: LayerPlan) -> Iterator[Estimate]: ...


@dataclass(frozen=True, slots=True)
class Tried:
    """One plan that was tried.

    Attributes:
        stage: of the search that proposed it.
        complete: whether it was measured on all prompts; else it was given up.
    """

    number: int
    plan: LayerPlan
    stage: str
    estimate: Estimate
    complete: bool


class _BehindBest(optuna.pruners.BasePruner):
    """Gives up what is behind the best plan as that was after the same prompts.

    Optuna's own pruners ask for a place among all plans; most of a sweep are much alike.
    """

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        done, complete = trial.last_step, study.get_trials(False, states=(TrialState.COMPLETE,))
        if done is None or done < _PATIENCE or trial.user_attrs.get(_STAGE) == _STAGES[0]:
            return False
        best = max((t for t in complete), key=lambda t: t.value or 0.0, default=None)
        if best is None or done not in best.intermediate_values:
            return False
        then = best.intermediate_values[done]
        return trial.intermediate_values[done] < (1.0 - _BEHIND) * then


class Search:
    """Owns a study. One thread.

    Args:
        starts: plans to begin with; they are measured on all prompts.
        seed: decides, with the estimates, everything that is tried.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        evaluate: Evaluate,
        *,
        starts: Sequence[LayerPlan],
        seed: int,
    ) -> None:
        self.study, self._space, self._evaluate = study, space, evaluate
        self._starts, self._seed = list(starts), seed
        study.pruner = _BehindBest()
        self._take_up()

    def run(
        self,
        *,
        budget: Budget,
        most_trials: int | None = None,
        progress: Callable[[Tried], None] = lambda _: None,
    ) -> None:
        """Tries plans until nothing is left of the budget or the study has so many.

        A trial that the budget cuts off stays in the study as one that runs: a search that takes it
        up tries that plan again.
        """
        with suppress(OutOfTime):
            while most_trials is None or len(self.tried()) < most_trials:
                budget.check()
                progress(self._try_one())

    def tried(self) -> list[Tried]:
        """In order."""
        trials = self.study.get_trials(deepcopy=False, states=_DONE)
        return [self._as_tried(trial) for trial in trials]

    def best(self, count: int = 1) -> list[Tried]:
        """The best different plans of those that were measured on all prompts."""
        complete = [tried for tried in self.tried() if tried.complete]
        complete.sort(key=lambda tried: -tried.estimate.tokens_per_second)
        by_plan: dict[LayerPlan, Tried] = {}
        for tried in complete:
            by_plan.setdefault(tried.plan, tried)
        return list(by_plan.values())[:count]

    # ---- one trial -------------------------------------------------------------------------

    def _try_one(self) -> Tried:
        self._begin_stages()
        number = len(self.study.get_trials(deepcopy=False, states=_DONE))
        # A sampler of its own for each trial: its state does not outlive the process.
        self.study.sampler = optuna.samplers.TPESampler(
            multivariate=True,
            n_startup_trials=0,
            seed=(self._seed * 1_000_003 + number) % _SEEDS,
        )
        queued = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        trial = self.study.ask(self._space.distributions if queued else self._choices())
        plan = self._space.plan(trial.params)
        known = self._known(plan)
        if known is not None:
            # Nothing to learn from the same plan: next comes one beside the best.
            generator = random.Random(f"{self._seed} {number}")
            self._enqueue([self._new_neighbour(generator)], _STAGES[-1])
            estimate, complete = known.estimate, known.complete
        else:
            estimate, complete = self._measure(trial, plan)
        stage = str(trial.user_attrs.get(_STAGE, _STAGES[-1]))
        trial.set_user_attr(_STAGE, stage)
        trial.set_user_attr(_ESTIMATE, estimate.as_dict())
        if complete:
            self.study.tell(trial, estimate.tokens_per_second)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        return Tried(trial.number, plan, stage, estimate, complete)

    def _measure(self, trial: optuna.Trial, plan: LayerPlan) -> tuple[Estimate, bool]:
        """The estimate, and whether it is from all prompts."""
        estimate: Estimate | None = None
        for estimate in self._evaluate(plan):
            trial.report(estimate.tokens_per_second, estimate.prompts)
            if trial.should_prune():
                return estimate, False
        assert estimate is not None
        return estimate, True

    def _known(self, plan: LayerPlan) -> Tried | None:
        return next((tried for tried in self.tried() if tried.plan == plan), None)

    def _new_neighbour(self, generator: random.Random) -> LayerPlan:
        known = {tried.plan for tried in self.tried()}
        plan = self.best()[0].plan
        for _ in range(100):
            near = self._space.neighbour(plan, generator)
            if near not in known:
                return near
        return near

    # ---- what the search begins with -------------------------------------------------------

    def _begin_stages(self) -> None:
        """Queues the next stage's plans once the stage before is done."""
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return
        begun = self.study.user_attrs.get("begun", [])
        following = next((stage for stage in _STAGES[:-1] if stage not in begun), None)
        if following is None:
            return
        plans = {
            "whole": lambda: self._starts,
            "sweep": lambda: self._space.one_at_a_time(self.best()[0].plan),
            "together": self._together,
        }[following]()
        self._enqueue(plans, following)
        self.study.set_user_attr("begun", [*begun, following])

    def _ranked_sweep(self) -> list[Tried]:
        """Plans with one more sublayer skipped, the least missed first."""
        sweep = [tried for tried in self.tried() if tried.stage == "sweep"]
        # Of those given up early only, nobody knows how they would have ended: they come last.
        return sorted(sweep, key=lambda t: (-t.estimate.prompts, -t.estimate.tokens_per_second))

    def _choices(self) -> dict[str, BaseDistribution]:
        """Precisions, and the half of the sublayers that are least missed: a suggestion over all
        of them skips a tenth at random, of which some are always missed."""
        sweep, every = self._ranked_sweep(), self._space.distributions
        if not sweep:
            return every
        best = sweep[: max(_FEWEST_CHOICES, len(sweep) // 2)]
        skipped = {
            name for t in best for name, kept in self._space.params(t.plan).items() if not kept
        }
        return {name: kind for name, kind in every.items() if name in skipped or "." not in name}

    def _together(self) -> list[LayerPlan]:
        """The sublayers whose loss did least harm, more and more of them at once."""
        sweep = self._ranked_sweep()
        plans = []
        for count in (2, 3, 4, 6, 8, 12, 16, 24):
            if count > len(sweep):
                break
            chosen = [tried.plan for tried in sweep[:count]]
            attention = frozenset().union(*(plan.skip_attention for plan in chosen))
            mlp = frozenset().union(*(plan.skip_mlp for plan in chosen))
            skips = type(chosen[0].skips)(attention, mlp)
            plans.append(chosen[0].with_skips(skips))
        return plans

    def _enqueue(self, plans: Sequence[LayerPlan], stage: str) -> None:
        for plan in plans:
            self.study.enqueue_trial(self._space.params(plan), user_attrs={_STAGE: stage})

    def _take_up(self) -> None:
        """A queued trial that was under way when a search ended is queued again, behind the
        others; the sampler will suggest its own again by itself."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)
            if _STAGE in trial.user_attrs:
                stage = {_STAGE: trial.user_attrs[_STAGE]}
                self.study.enqueue_trial(trial.params, user_attrs=stage)

    def _as_tried(self, trial: Any) -> Tried:
        return Tried(
            number=trial.number,
            plan=self._space.plan(trial.params),
            stage=trial.user_attrs[_STAGE],
            estimate=Estimate.from_dict(trial.user_attrs[_ESTIMATE]),
            complete=trial.state == TrialState.COMPLETE,
        )
