"""A whole run on a tiny model: the plan file, the report, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from slipstream.bench.machine import cores
from slipstream.bench.questions import choose, encode, load_questions
from slipstream.bench.setups import Place
from slipstream.cli import tune as command
from slipstream.cli.plan_files import load_plans
from slipstream.core import extras
from slipstream.core.errors import ConfigurationError, ModelMismatch
from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.core.model_folder import fingerprint
from slipstream.engine.checkpoint import load_model
from slipstream.engine.step_cost import StepCost
from slipstream.tune import finals
from slipstream.tune import report as reports
from slipstream.tune.budget import Budget, seconds_of
from slipstream.tune.compare import compare
from slipstream.tune.confirm import PLAIN, Confirmed, confirm
from slipstream.tune.costs import VerifyCost
from slipstream.tune.evaluate import Estimate
from slipstream.tune.finals import Row
from slipstream.tune.pareto import pareto_front
from slipstream.tune.run import SearchSettings, Tuned, _check_out, tune
from slipstream.tune.search import Tried
from slipstream.tune.settings import TUNING_PROMPTS, TuneSettings


class Quiet:
    """Listens and says nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def tried(self, tried, best) -> None:
        pass


@pytest.fixture
def settings(tiny_model_dir: Path) -> TuneSettings:
    return TuneSettings(tiny_model_dir, "tiny", limit=2, max_tokens=12, threads=1)


def wanted(folder: Path, **more) -> SearchSettings:
    values = {"trials": 24, "finalists": 0, **more}
    return SearchSettings(folder / "report", folder / "layer_plan.json", **values)


@pytest.mark.usefixtures("fast_disk")
def test_a_run_from_start_to_report(settings, tmp_path) -> None:
    """The plan loads into its model and no other; the report's files are what they should be; a
    second run takes up what the first has measured."""
    search = wanted(tmp_path)
    tuned = tune(settings, search, Budget(), Quiet())
    plan = LayerPlan.load(search.out)
    assert plan == tuned.plan
    assert plan.model_fingerprint == fingerprint(settings.model)
    assert load_model(settings.model, plan=plan).plan == plan
    with pytest.raises(ModelMismatch):
        plan.check("0" * 32, 4)
    assert len(tuned.tried) == 24
    paths = reports.write(search.report, settings, search, tuned)
    data = json.loads(paths[0].read_text())
    assert [t["number"] for t in data["tried"]] == list(range(24))
    assert data["rows"][0]["plan"]["precision"] == plan.precision
    assert set(data["pareto"]) <= {t["number"] for t in data["tried"] if t["complete"]}
    assert "| plain decoding |" in paths[1].read_text()
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 500
    again = tune(settings, replace(search, resume=True, trials=26), Budget(), Quiet())
    assert again.tried[:24] == tuned.tried
    assert again.verify == tuned.verify
    assert len(again.tried) == 26


@pytest.mark.usefixtures("fast_disk")
def test_two_runs_with_one_seed(settings, tmp_path, monkeypatch) -> None:
    """With the same step costs, two searches are the same to the last digit."""
    monkeypatch.setattr(
        "slipstream.tune.workbench.measure_verify",
        lambda _: VerifyCost((1, 2, 17), (0.02, 0.021, 0.03)),
    )
    monkeypatch.setattr(
        "slipstream.tune.evaluate.fit_step_cost",
        lambda runner, _: StepCost(0.002, 1e-4, 2e-4, runner.loaded.skips.num_layers),
    )
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = (
        tune(settings, wanted(tmp_path / name, seed=3), Budget(), Quiet()) for name in "ab"
    )
    assert first.tried == second.tried
    assert first.plan == second.plan


def test_comparing_plans(settings, tmp_path) -> None:
    """Plans stand beside the naive ones, whatever they are called; the same one stands once."""
    plan = LayerPlan("int8", "int8", skip_mlp=frozenset({2}))
    plans = {"mine": plan, "automatic": plan.with_skips(Skips(frozenset({1})))}
    plans["again"] = plan
    quiet = Quiet()
    rows, plain = compare(settings, plans, work=tmp_path, repeats=0, say=quiet.say)
    names = [row.name for row in rows]
    assert plain is None
    expected = {"mine", "automatic", "automatic (naive)", "every 2nd layer"}
    assert expected <= {*names, *(line.partition(" is the same")[0] for line in quiet.lines)}
    assert {row.name: row.plan for row in rows if row.name in plans} == {
        name: plans[name] for name in ("mine", "automatic")
    }
    assert "again is the same plan as mine" in quiet.lines
    paths = reports.write_comparison(tmp_path / "table", settings, rows, plain)
    assert [row["name"] for row in json.loads(paths[0].read_text())["rows"]] == names


def test_comparing_a_plan_for_another_model(settings, tmp_path) -> None:
    """It is refused before the model is loaded."""
    other, quiet = LayerPlan(model_fingerprint="0" * 32), Quiet()
    with pytest.raises(ModelMismatch):
        compare(settings, {"mine": other}, work=tmp_path, repeats=0, say=quiet.say)
    assert quiet.lines == []


def test_plans_of_like_names(tmp_path) -> None:
    """Files of one name are told apart by their folders, as far as that takes; one file is one."""
    paths = [
        tmp_path / folder / name
        for folder, name in (("a/x", "p.json"), ("b/x", "p.json"), ("a/y", "p.json"), ("a", "q"))
    ]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        LayerPlan(skip_mlp=frozenset({number})).save(path)
    plans = load_plans([*paths, paths[0]])
    assert list(plans) == ["a/x/p", "b/x/p", "y/p", "q"]
    assert [sorted(plan.skip_mlp) for plan in plans.values()] == [[0], [1], [2], [3]]
    twin = paths[0].with_suffix(".txt")
    LayerPlan().save(twin)
    assert list(load_plans([paths[0], twin])) == [str(paths[0]), str(twin)]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_plan_in_the_real_pipeline(settings, tmp_path) -> None:
    """Run as services, a plan gives the answers of plain decoding, at a speed that is measured.

    So is its acceptance where the length policy takes drafts: a model of this size needs none.
    """
    prompts, _ = encode(choose(load_questions(TUNING_PROMPTS), 2), settings.model, 12)
    found = await confirm(
        {"mine": LayerPlan("int8", "int8", skip_mlp=frozenset({2}))},
        prompts,
        Place(settings.model, tmp_path, tuple(cores()), dtype="float32"),
        placement="separate",
        kv_context="prompt",
        slowdown=1.5,
        max_tokens=12,
        repeats=1,
        budget=Budget(),
        say=lambda _: None,
    )
    assert set(found) == {PLAIN, "mine"}
    acceptance = found["mine"].acceptance
    assert acceptance is None or 0.0 <= acceptance <= 1.0
    assert all(c.tokens_per_second > 0 and c.differing == 0 for c in found.values())


def test_finalists_run_as_they_were_searched(settings, tmp_path, monkeypatch) -> None:
    """The services of the pipeline get the search's type, device and slowness of the drafter."""
    seen = {}

    async def recorded(plans, prompts, place, **how):
        seen.update(how, place=place)
        return {name: Confirmed(1.0, (1.0,), None, 0) for name in (PLAIN, *plans)}

    monkeypatch.setattr(finals, "confirm", recorded)
    asked = replace(settings, limit=1, dtype="float32", device="cpu", drafter_slowdown=3.0)
    compare(asked, {}, work=tmp_path, repeats=2, say=Quiet().say)
    assert (seen["place"].dtype, seen["place"].device) == ("float32", "cpu")
    assert (seen["slowdown"], seen["repeats"]) == (3.0, 2)
    assert seen["place"].common[2:] == ["--dtype", "float32", "--device", "cpu"]


def estimate(cost: float, acceptance: float) -> Estimate:
    return Estimate(50.0, 1.5, 4, acceptance, (acceptance,), cost, 0.02, 3)


def tried(number: int, cost: float, acceptance: float, *, complete: bool = True) -> Tried:
    plan = LayerPlan(skip_mlp=frozenset({number}))
    return Tried(number, plan, "sweep", estimate(cost, acceptance), complete)


def test_the_pareto_front() -> None:
    """What is neither cheaper nor more often right than another is not on it."""
    plans = [
        tried(0, 0.010, 0.90),
        tried(1, 0.008, 0.80),
        tried(2, 0.009, 0.79),
        tried(3, 0.010, 0.85),
        tried(4, 0.005, 0.95, complete=False),
        tried(5, 0.012, 0.91),
    ]
    assert [t.number for t in pareto_front(plans)] == [1, 0, 5]


def test_the_report_says_what_was_measured(settings, tmp_path) -> None:
    """Rates of the pipeline with their spread, answers that differ, and the effect of one skip; and
    where plain decoding is faster, that it is."""
    plans = (tried(0, 0.010, 0.90), tried(1, 0.008, 0.80))
    confirmed = Confirmed(71.5, (70.0, 71.5, 73.0), 0.876, 2)
    rows = (Row("tuned, no. 1", plans[0].plan, plans[0].estimate, confirmed),)
    verify = VerifyCost((1, 4), (0.02, 0.025))
    chosen = replace(plans[0].plan, model_fingerprint="f" * 32)
    found = Tuned(chosen, rows, plans, verify, {}, Confirmed(40.0, (40.0,), None, 0))
    text = reports.markdown(settings, wanted(tmp_path), found)
    assert reports.NO_GAIN not in text
    slow = replace(found, plain=Confirmed(72.0, (72.0,), None, 0))
    assert reports.NO_GAIN in reports.markdown(settings, wanted(tmp_path), slow)
    assert "71.5 (70.0 to 73.0), 2 answers differ" in text
    assert "| 0.876 |" in text
    assert "| MLP 1 | 50.0 | 0.800 | 3 |" in text
    assert verify(2) == pytest.approx(0.02 + 0.005 / 3)
    assert verify(7) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("20m", 1200.0), ("1.5h", 5400.0), (" 2m", 120.0)]
)
def test_durations(text, seconds) -> None:
    """A number and a unit."""
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "m", "0s", "-3m", "20 m", "1d"])
def test_no_durations(text) -> None:
    """Anything else is refused, by the option's name."""
    with pytest.raises(ConfigurationError, match="--budget"):
        seconds_of(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kv_context": "all"},
        {"placement": "x"},
        {"limit": 0},
        {"max_tokens": 0},
        {"drafter_slowdown": 0.5},
    ],
)
def test_settings_that_cannot_be(settings, wrong) -> None:
    """Unknown choices and numbers below one are refused before anything is loaded."""
    with pytest.raises(ConfigurationError):
        replace(settings, **wrong)


def test_what_must_be_installed(monkeypatch) -> None:
    """Without the extra packages the command says which, and how to get them."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "optuna" else object())
    with pytest.raises(ConfigurationError, match=r"needs optuna: .*slipstream-serve\[tune\]"):
        command.check_installed()


def test_a_plan_that_cannot_be_written(settings, tmp_path) -> None:
    """It is told before the search, not after it; the check leaves no file behind."""
    for out in (tmp_path / "nowhere" / "plan.json", tmp_path, tmp_path / ("x" * 300)):
        quiet = Quiet()
        with pytest.raises(ConfigurationError, match="--out"):
            tune(settings, replace(wanted(tmp_path), out=out), Budget(), quiet)
        assert quiet.lines == []
    _check_out(tmp_path / "plan.json")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match="cannot write"):
        LayerPlan().save(tmp_path)


@pytest.mark.parametrize("subcommand", [[], ["compare"]])
@pytest.mark.parametrize(
    ("option", "value"),
    [("--kv-context", "y"), ("--placement", "auto"), ("--device", "nonsense"), ("--dtype", "int3")],
)
def test_options_are_checked_before_the_model(monkeypatch, subcommand, option, value) -> None:
    """No model is looked for, let alone fetched, for a command that cannot be."""
    monkeypatch.setattr(command, "resolve", lambda *_, **__: pytest.fail("looked for the model"))
    ended = CliRunner().invoke(command.app, [*subcommand, option, value])
    assert isinstance(ended.exception, ConfigurationError), ended.output
    assert option in ended.exception.message
