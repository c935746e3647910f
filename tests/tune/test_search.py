"""The search by itself, on made-up plans' worth: what it finds, and that it can be repeated."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.tune.budget import Budget
from slipstream.tune.evaluate import Estimate
from slipstream.tune.search import Search
from slipstream.tune.space import Space
from slipstream.tune.study import StudyDict, open_study

LAYERS = 6
BEST = LayerPlan("int4", "int8", frozenset({1, 4}), frozenset({3}))
STARTS = [LayerPlan(), LayerPlan("int8", "int8"), LayerPlan("int4", "int4")]
PROMPTS = 5


def worth(plan: LayerPlan) -> float:
    """Tokens per second: less for each difference from the planted plan.

    Two of its sublayers pay only together: skipping one at a time does not show what they give.
    """
    wrong = len(plan.skip_attention ^ BEST.skip_attention) + len(plan.skip_mlp ^ BEST.skip_mlp)
    wrong += 2 * (plan.precision != BEST.precision) + (plan.head_precision != BEST.head_precision)
    wrong += (4 in plan.skip_attention) != (3 in plan.skip_mlp)
    return 100.0 - 7.0 * wrong


class Counting:
    """Estimates of the same worth after every prompt; counts the prompts that were run."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.prompts, self.plans, self.fail_after = 0, 0, fail_after

    def __call__(self, plan):
        self.plans += 1
        for count in range(1, PROMPTS + 1):
            if self.fail_after is not None and self.prompts >= self.fail_after:
                raise KeyboardInterrupt
            self.prompts += 1
            value = worth(plan) + 0.1 * count
            yield Estimate(value, value / 50, 4, 0.9, (0.9, 0.8), 0.01, 0.02, count)


def searching(study, evaluate, seed=0):
    return Search(study, Space(LAYERS), evaluate, starts=STARTS, seed=seed)


def run(search, trials):
    search.run(budget=Budget(), most_trials=trials)


def history(search):
    return [(t.plan, t.stage, t.complete, t.estimate.tokens_per_second) for t in search.tried()]


def in_memory():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finds_the_planted_plan(seed) -> None:
    """Of 147456 plans it finds the best within 150, whatever the seed."""
    search = searching(in_memory(), Counting(), seed)
    run(search, 150)
    (best,) = search.best()
    assert best.plan == BEST
    assert best.complete
    assert best.estimate.prompts == PROMPTS


@pytest.mark.parametrize("seed", [4294, 4295, 10**30])
def test_any_seed(seed) -> None:
    """However large a seed is, a search can be made from it."""
    search = searching(in_memory(), Counting(), seed)
    run(search, len(STARTS) + 4 * LAYERS)
    assert search.tried()[-1].stage == "search"


def test_begins_with_what_is_simple() -> None:
    """First the given plans, then each sublayer by itself, then the least missed together."""
    search = searching(in_memory(), Counting())
    run(search, 60)
    tried = search.tried()
    assert [t.plan for t in tried[:3]] == STARTS
    assert all(t.complete for t in tried[:3])
    sweep = [t for t in tried if t.stage == "sweep"]
    assert [len(t.plan.skips) for t in sweep] == [1] * 2 * LAYERS
    assert {t.plan.precision for t in sweep} == {"int4"}
    together = [t for t in tried if t.stage == "together"]
    assert [len(t.plan.skips) for t in together] == [2, 3, 4, 6, 8, 12]
    assert together[1].plan.skips == BEST.skips
    assert {t.stage for t in tried[-10:]} == {"search"}


def test_bad_plans_are_given_up_early() -> None:
    """A part of the plans costs fewer prompts than there are; none of these is ever the best."""
    evaluate = Counting()
    search = searching(in_memory(), evaluate)
    run(search, 80)
    given_up = [t for t in search.tried() if not t.complete]
    assert len(given_up) > 15
    assert evaluate.prompts < 0.85 * PROMPTS * evaluate.plans
    assert {t.number for t in search.best(100)}.isdisjoint(t.number for t in given_up)


def test_the_seed_decides_everything() -> None:
    """Two searches with one seed try the same plans in the same order, another seed others."""
    searches = [searching(in_memory(), Counting(), seed) for seed in (4, 4, 5)]
    for search in searches:
        run(search, 50)
    first, second, other = map(history, searches)
    assert first == second
    assert first != other


@pytest.mark.usefixtures("fast_disk")
def test_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    """A search that was cut in the middle of a trial ends as one that was not."""
    whole = searching(in_memory(), Counting(), seed=9)
    run(whole, 60)
    for cut in (2, 20, 90):
        journal = tmp_path / f"{cut}.journal"
        cut_short = searching(
            open_study(journal, {"seed": 9}, resume=False), Counting(fail_after=cut), seed=9
        )
        with pytest.raises(KeyboardInterrupt):
            run(cut_short, 60)
        assert len(cut_short.tried()) < 60
        taken_up = searching(open_study(journal, {"seed": 9}, resume=True), Counting(), seed=9)
        run(taken_up, 60)
        assert len(taken_up.tried()) == 60
        assert taken_up.best()[0].plan == whole.best()[0].plan


@pytest.mark.usefixtures("fast_disk")
def test_resumed_between_trials_it_is_the_very_same(tmp_path: Path) -> None:
    """Stopped after some trials and taken up, the history is that of one run."""
    whole = searching(in_memory(), Counting(), seed=9)
    run(whole, 50)
    for trials in (2, 10, 28, 50):
        resume = trials > 2
        study = open_study(tmp_path / "journal", {"seed": 9}, resume=resume)
        search = searching(study, Counting(), seed=9)
        run(search, trials)
    assert history(search) == history(whole)


def test_a_plan_is_measured_once() -> None:
    """What the sampler suggests again is not measured again."""
    evaluate = Counting()
    search = searching(in_memory(), evaluate, seed=3)
    run(search, 120)
    assert evaluate.plans == len({t.plan for t in search.tried()})


def test_another_search_is_not_taken_up(tmp_path: Path) -> None:
    """A journal is not overwritten, nor taken up with other settings, nor read as another file."""
    journal = tmp_path / "study" / "journal"
    study = open_study(journal, {"seed": 1, "model": "a"}, resume=False)
    StudyDict(study, "costs")["int4/int8"] = {"base": 0.5}
    with pytest.raises(ConfigurationError, match="--resume"):
        open_study(journal, {"seed": 1, "model": "a"}, resume=False)
    with pytest.raises(ConfigurationError, match="other model"):
        open_study(journal, {"seed": 1, "model": "b"}, resume=True)
    again = StudyDict(open_study(journal, {"seed": 1, "model": "a"}, resume=True), "costs")
    assert dict(again) == {"int4/int8": {"base": 0.5}}
    strange = tmp_path / "strange"
    strange.write_text("no journal\n" * 3)
    with pytest.raises(ConfigurationError):
        open_study(strange, {}, resume=True)
