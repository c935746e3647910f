"""One tuning run: search, the best plans in the real pipeline, plan file and report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from slipstream.bench.machine import cores
from slipstream.bench.setups import Place
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.model_files import ModelFolder
from slipstream.tune.confirm import PLAIN, Confirmed, confirm
from slipstream.tune.costs import VerifyCost
from slipstream.tune.evaluate import Estimate
from slipstream.tune.plans import naive_plans, whole_plans
from slipstream.tune.search import Search, Tried
from slipstream.tune.settings import TuneSettings
from slipstream.tune.space import Space
from slipstream.tune.study import StudyDict, open_study
from slipstream.tune.workbench import Workbench, set_up

JOURNAL = "study.journal"
_VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Attributes:

    report: folder of journal, report and logs; out: where the plan goes.
    budget_seconds: of the search; loading and confirming come on top.
    trials: most plans to try; None for as many as the time allows.
    finalists: how many of the best run in the real pipeline; 0 takes the best estimate.
    repeats: how often each of them runs there.
    """

    report: Path
    out: Path
    budget_seconds: float
    trials: int | None = None
    seed: int = 0
    resume: bool = False
    finalists: int = 3
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One plan of a table. `confirmed` is None where it did not run in the pipeline."""

    name: str
    plan: LayerPlan
    estimate: Estimate
    confirmed: Confirmed | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run found.

    Attributes:
        rows: finalists and naive plans, the chosen one first.
        plain: plain decoding beside the confirmed rows.
    """

    plan: LayerPlan
    rows: tuple[Row, ...]
    tried: tuple[Tried, ...]
    verify: VerifyCost
    draft_costs: Mapping[str, Mapping[str, float]]
    plain: Confirmed | None


class Watcher(Protocol):
    """Is told how a run goes on."""

    def say(self, line: str) -> None: ...

    def tried(self, tried: Tried, best: Tried | None) -> None: ...


def tune(settings: TuneSettings, wanted: SearchSettings, watcher: Watcher) -> Tuned:
    """Searches, confirms, writes the plan. The caller writes the report.

    Raises:
        SlipstreamError: a file, the model, a setting or a service is not usable.
    """
    _check_out(wanted.out)
    bench = set_up(settings, watcher.say)
    identity = bench.identity() | {"seed": wanted.seed}
    study = open_study(wanted.report / JOURNAL, identity, resume=wanted.resume)
    measured = StudyDict(study, _VERIFY)
    if "" not in measured:
        watcher.say("measuring verify steps")
        measured[""] = asdict(bench.measure_verify())
    verify = VerifyCost(tuple(measured[""]["rows"]), tuple(measured[""]["seconds"]))
    costs = StudyDict(study, "costs")
    evaluator = bench.evaluator(verify, costs)
    naive = naive_plans(bench.layers, bench.automatic)
    search = Search(
        study,
        Space(bench.layers, heads=bench.heads),
        evaluator.evaluate,
        starts=_different([*whole_plans(bench.heads), *naive.values()]),
        seed=wanted.seed,
    )
    watcher.say("searching")
    search.run(
        deadline=time.monotonic() + wanted.budget_seconds,
        most_trials=wanted.trials,
        progress=lambda tried: watcher.tried(tried, next(iter(search.best()), None)),
    )
    rows = _candidates(search, naive, max(1, wanted.finalists))
    plain = None
    if wanted.finalists:
        bench.copies.close()
        rows, plain = confirmed_rows(bench, rows, wanted.report, wanted.repeats, watcher)
    chosen = bench.of_model(rows[0].plan)
    chosen.save(wanted.out)
    return Tuned(chosen, rows, tuple(search.tried()), verify, dict(costs), plain)


def _check_out(out: Path) -> None:
    """Whether the plan can be written, which is known before the search rather than after it.

    Raises:
        ConfigurationError: it cannot.
    """
    try:
        new = not out.exists()
        if not new and not out.is_file():
            raise ConfigurationError(f"--out {out} is no file: give the plan's file name")
        with out.open("a"):
            pass
        if new:
            out.unlink()
    except OSError as failure:
        raise ConfigurationError(f"--out {out} cannot be written: {failure}") from failure


def _folder(path: Path) -> Path:
    """The folder, made where there is none. Raises ConfigurationError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise ConfigurationError(f"cannot make the folder {path}: {failure}") from failure
    return path


def _different(plans: Sequence[LayerPlan]) -> list[LayerPlan]:
    return list(dict.fromkeys(plans))


def _candidates(search: Search, naive: Mapping[str, LayerPlan], finalists: int) -> tuple[Row, ...]:
    """The best plans and the naive ones, as far as they were measured on all prompts; the best
    estimate first."""
    complete = {tried.plan: tried.estimate for tried in search.tried() if tried.complete}
    if not complete:
        raise ConfigurationError("the budget ended before one plan was measured; give more time")
    best = search.best(finalists)
    named = {tried.plan: f"tuned, no. {place}" for place, tried in enumerate(best, start=1)}
    for name, plan in naive.items():
        if plan in complete:
            named.setdefault(plan, name)
    rows = [Row(name, plan, complete[plan]) for plan, name in named.items()]
    return tuple(sorted(rows, key=lambda row: -row.estimate.tokens_per_second))


def confirmed_rows(
    bench: Workbench, rows: Sequence[Row], work: Path, repeats: int, watcher: Watcher
) -> tuple[tuple[Row, ...], Confirmed]:
    """Runs the rows in the real pipeline; the fastest first. And plain decoding beside them."""
    settings = bench.settings
    found = asyncio.run(
        confirm(
            {row.name: bench.of_model(row.plan) for row in rows},
            bench.prompts,
            Place(
                settings.model,
                _folder(work / "pipeline"),
                tuple(cores()),
                dtype=settings.dtype,
                device=settings.device,
            ),
            placement=settings.placement,
            kv_context=settings.kv_context,
            slowdown=settings.drafter_slowdown,
            max_tokens=settings.max_tokens,
            repeats=repeats,
            say=watcher.say,
        )
    )
    confirmed = [Row(row.name, row.plan, row.estimate, found[row.name]) for row in rows]
    confirmed.sort(key=lambda row: -(row.confirmed or found[PLAIN]).tokens_per_second)
    return tuple(confirmed), found[PLAIN]


def compare(
    settings: TuneSettings,
    plans: Mapping[str, LayerPlan],
    *,
    work: Path,
    repeats: int,
    watcher: Watcher,
) -> tuple[tuple[Row, ...], Confirmed | None]:
    """Plans beside the naive ones, on prompts that no search has seen.

    Args:
        repeats: how often each runs in the real pipeline; 0 leaves that out.

    Raises:
        ModelMismatch: a plan is for another model.
        SlipstreamError: a file, the model, a setting or a service is not usable.
    """
    _folder(work)
    folder = ModelFolder(settings.model)
    for plan in plans.values():
        plan.check(folder.fingerprint, folder.config.num_hidden_layers)
    bench = set_up(settings, watcher.say)
    evaluator = bench.evaluator(bench.measure_verify(), {})
    naive = naive_plans(bench.layers, bench.automatic)
    # A file may have the name of a naive plan.
    beside = {f"{name} (naive)" if name in plans else name: naive[name] for name in naive}
    named: dict[LayerPlan, str] = {}
    for name, plan in {**plans, **beside}.items():
        unbound = replace(plan, model_fingerprint="")
        if named.setdefault(unbound, name) != name:
            watcher.say(f"{name} is the same plan as {named[unbound]}")
    rows = []
    for plan, name in named.items():
        *_, estimate = evaluator.evaluate(plan)
        rows.append(Row(name, plan, estimate))
        watcher.say(f"{name}: {estimate.tokens_per_second:.1f} tokens/s by measured parts")
    rows.sort(key=lambda row: -row.estimate.tokens_per_second)
    if not repeats:
        return tuple(rows), None
    bench.copies.close()
    return confirmed_rows(bench, rows, work, repeats, watcher)
