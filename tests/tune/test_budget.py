"""A budget is the bound of a whole run, by a clock that only the work of a run moves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from slipstream.bench.records import Prompt
from slipstream.bench.setups import Place
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.engine.runner import ModelRunner
from slipstream.tune import confirm as confirming
from slipstream.tune import workbench
from slipstream.tune.budget import Budget, OutOfTime
from slipstream.tune.confirm import PLAIN, RUN, Confirmed, confirm, cut_off
from slipstream.tune.finals import share
from slipstream.tune.run import SearchSettings, Tuned, tune
from slipstream.tune.settings import TuneSettings

PASS, LOADING, LOOKING, FINAL = 1.0, 20.0, 100.0, 100.0


class Clock:
    """Shows what it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Watching:
    """Takes its time over each plan: one that is known already takes none by itself."""

    clock: Clock

    def say(self, line: str) -> None:
        pass

    def tried(self, *_: object) -> None:
        self.clock.now += LOOKING


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every pass takes a second, to load a model 20 and to run in the pipeline 100. There a plan is
    the faster the more it skips, and plain decoding gives 50 tokens a second."""
    clock, forward, load = Clock(), ModelRunner.forward, workbench.load_model

    def passing(self: ModelRunner, *args: object) -> object:
        clock.now += PASS
        return forward(self, *args)

    def loading(*args: object, **options: object) -> object:
        clock.now += LOADING
        return load(*args, **options)

    async def running(setup, place, prompts, max_tokens, *, plain) -> list[confirming._Runs]:
        clock.now += FINAL
        plan = LayerPlan.load(place.logs / "candidate.json")
        rates = [60.0 + len(plan.skips), 50.0][: 1 + plain]
        return [confirming._Runs([rate], tokens=[(1,)] * len(prompts)) for rate in rates]

    monkeypatch.setattr(ModelRunner, "forward", passing)
    monkeypatch.setattr(workbench, "load_model", loading)
    monkeypatch.setattr(workbench, "choose_shapes", lambda *_: None)
    monkeypatch.setattr(confirming, "_run", running)
    return clock


@pytest.fixture
def run(
    tiny_model_dir: Path, tmp_path: Path, clock: Clock, fast_disk: None
) -> Callable[..., Tuned]:
    """Tunes within a budget; each folder has a search and a plan of its own."""
    settings = TuneSettings(tiny_model_dir, "tiny", limit=2, max_tokens=4, threads=1)

    def run(budget: Budget, name: str = "a", **more: object) -> Tuned:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        wanted = SearchSettings(folder, folder / "plan.json", **more)
        tuned = tune(settings, wanted, budget, Watching(clock))
        assert LayerPlan.load(wanted.out) == tuned.plan
        return tuned

    return run


def _runs(tuned: Tuned) -> list[int]:
    """How often each plan of the table ran in the pipeline."""
    return [0 if row.confirmed is None else len(row.confirmed.rates) for row in tuned.rows]


def test_the_budget_bounds_the_whole_run(run: Callable[..., Tuned], clock: Clock) -> None:
    """Whatever it is, the plan is there in time; with more of it more is tried, and more is
    confirmed, first of all the best and what would be taken without a search."""
    small, middle, large = 320.0, 1200.0, 2500.0
    tuned = {}
    for seconds in (small, middle, large):
        budget = Budget(seconds, clock)
        tuned[seconds] = run(budget, f"{seconds:g}")
        # What cannot be interrupted may have begun just before the end.
        assert budget.spent <= seconds + max(PASS, LOOKING)
    tried = [len(tuned[seconds].tried) for seconds in (small, middle, large)]
    assert sorted(set(tried)) == tried
    assert set(_runs(tuned[small])) == {0}
    assert tuned[small].plain is None
    assert 2 <= sum(_runs(tuned[middle])) < sum(_runs(tuned[large]))
    found = tuned[large]
    assert found.plain is not None
    assert found.pays
    confirmed = [row for row in found.rows if row.confirmed]
    assert len(found.rows[0].plan.skips) == max(len(row.plan.skips) for row in confirmed)
    automatic = found.tried[0].plan
    assert automatic.skips == Skips()
    assert automatic in [row.plan for row in confirmed]


def test_a_calibration_is_no_part_of_a_run(
    tiny_model_dir: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made once for each model: however long it took, the services' starts do not."""
    settings = TuneSettings(tiny_model_dir, "tiny", limit=1, max_tokens=2, threads=1)

    def calibrating(*_: object) -> None:
        clock.now += 1000.0

    seconds = []
    for pays in (False, True):
        monkeypatch.setattr(workbench, "screening_pays", lambda *_, pays=pays: pays)
        monkeypatch.setattr(workbench, "head_basis", calibrating)
        budget = Budget(clock=clock)
        seconds.append(workbench.set_up(settings, budget, lambda _: None).start_seconds)
        assert (budget.spent > 1000.0) == pays
    assert seconds[0] == pytest.approx(seconds[1])


def test_with_time_to_spare_all_runs_are_made(run: Callable[..., Tuned], clock: Clock) -> None:
    """What ends a search then is the number of trials; every row has every run."""
    found = run(Budget(20_000, clock), trials=12, repeats=2)
    assert len(found.tried) == 12
    assert set(_runs(found)) == {2}


@pytest.mark.parametrize("seconds", [1.0, 100.0, 240.0])
def test_a_budget_that_is_too_small(
    run: Callable[..., Tuned], clock: Clock, seconds: float
) -> None:
    """It is refused, as soon as a few steps have shown that it is, with one that does hold a plan;
    no plan is written."""
    budget = Budget(seconds, clock)
    with pytest.raises(ConfigurationError, match="too little to measure one plan") as refused:
        run(budget)
    loaded = LOADING + 6 * PASS
    assert budget.spent <= (seconds + PASS if seconds > 200 else loaded)
    enough = re.search(r"(\d+)s should be enough", refused.value.message)
    assert enough is not None, refused.value.message
    assert float(enough[1]) > seconds
    assert run(Budget(float(enough[1]), clock), "enough").tried


def test_a_search_that_is_taken_up_needs_less(run: Callable[..., Tuned], clock: Clock) -> None:
    """What was measured before is there: a budget that was too small for a new one goes on."""
    before = run(Budget(320, clock), finalists=0)
    again = run(Budget(60, clock), finalists=0, resume=True)
    assert again.tried[: len(before.tried)] == before.tried


PLANS = {name: LayerPlan(skip_mlp=frozenset({n})) for n, name in enumerate("abc")}


async def _confirm(budget: Budget, folder: Path, said: list[str]) -> dict[str, Confirmed]:
    return await confirm(
        PLANS,
        [Prompt("1", "qa", (1, 2))],
        Place(folder, folder, (0,)),
        placement="separate",
        kv_context="own",
        slowdown=1.0,
        max_tokens=1,
        repeats=2,
        budget=budget,
        say=said.append,
        first=2,
    )


async def test_fewer_runs_where_time_is_short(clock: Clock, tmp_path: Path) -> None:
    """No run is begun that would not fit in; the first plans have theirs before the others."""
    said: list[str] = []
    found = await _confirm(Budget(3.5 * FINAL, clock), tmp_path, said)
    assert {name: len(each.rates) for name, each in found.items()} == {"a": 1, "b": 2, PLAIN: 2}
    assert said[-1] == "no time for more: 3 of 6 runs in the pipeline were made"
    budget = Budget(3.5 * FINAL, clock)
    budget.expect(RUN, 4 * FINAL)
    assert await _confirm(budget, tmp_path, said) == {}


async def test_a_run_that_does_not_end_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """When the budget is over it is cancelled, which ends its services, and the rest is left out;
    a deadline of something else is a failure, as ever."""
    ended = []

    async def hanging(*_: object, **__: object) -> list[object]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        return []

    monkeypatch.setattr(confirming, "_run", hanging)
    assert await _confirm(Budget(0.05), tmp_path, []) == {}
    assert ended == [True]
    with pytest.raises(TimeoutError):
        async with cut_off(60.0):
            raise TimeoutError


@pytest.mark.parametrize(
    ("left", "plans", "kept"),
    [(10_000.0, 4, 1200.0), (1000.0, 4, 500.0), (399.0, 4, 0.0), (399.0, 1, 199.5)],
)
def test_the_share_of_the_final_runs(left: float, plans: int, kept: float) -> None:
    """All of them, where that is at most half of the time; none, where two plans do not fit in."""
    assert share(left, FINAL, plans, 3) == min(kept, plans * 3 * FINAL)


def test_what_a_budget_counts(clock: Clock) -> None:
    """Not what is done in a pause; a unit is refused where the longest of its kind would not fit,
    and the first one in no case."""
    budget = Budget(100, clock)
    with budget.paused():
        clock.now += 500
    with budget.unit("x"):
        clock.now += 30
    with budget.unit("x"):
        clock.now += 10
    assert (budget.spent, budget.left, budget.expected("x")) == (40, 60, 30)
    budget.reserve = 35
    with pytest.raises(OutOfTime), budget.unit("x"):
        pytest.fail("it was begun")
    clock.now += 25
    with pytest.raises(OutOfTime):
        budget.check()
    with budget.unit("y"):
        pass
