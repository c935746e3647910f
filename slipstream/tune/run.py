"""One tuning run: search, the best plans in the real pipeline, and the plan file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.tune.budget import Budget, OutOfTime
from slipstream.tune.confirm import RUN, Confirmed
from slipstream.tune.costs import VerifyCost
from slipstream.tune.finals import Row, confirmed_rows, run_seconds, share
from slipstream.tune.plans import AUTOMATIC, naive_plans, whole_plans
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
    trials: most plans to try; None for as many as the time allows.
    finalists: how many of the best run in the real pipeline, as far as there is time; 0 takes the
        best estimate.
    repeats: how often each of them runs there.
    """

    report: Path
    out: Path
    trials: int | None = None
    seed: int = 0
    resume: bool = False
    finalists: int = 3
    repeats: int = 3


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

    @property
    def pays(self) -> bool:
        """Whether the plan is faster than plain decoding: in the pipeline if it ran there."""
        chosen = self.rows[0]
        if chosen.confirmed is None or self.plain is None:
            return chosen.estimate.speedup > 1.0
        return chosen.confirmed.tokens_per_second > self.plain.tokens_per_second


class Watcher(Protocol):
    """Is told how a run goes on."""

    def say(self, line: str) -> None: ...

    def tried(self, tried: Tried, best: Tried | None) -> None: ...


def tune(settings: TuneSettings, wanted: SearchSettings, budget: Budget, watcher: Watcher) -> Tuned:
    """Searches, confirms, writes the plan. The caller writes the report.

    Args:
        budget: of all of this. What cannot be interrupted is a model that is loaded, a pass of it,
            and services that are told to end.

    Raises:
        ConfigurationError: the budget is over before one plan was measured.
        SlipstreamError: a file, the model, a setting or a service is not usable.
    """
    _check_out(wanted.out)
    journal = wanted.report / JOURNAL
    resumed = wanted.resume and journal.exists()
    bench = set_up(settings, budget, watcher.say, resumed=resumed)
    identity = bench.identity() | {"seed": wanted.seed}
    study = open_study(journal, identity, resume=wanted.resume)
    costs = StudyDict(study, "costs")
    naive = naive_plans(bench.layers, bench.automatic)
    with bench.minimum.held_by(budget):
        verify = _verify_cost(bench, StudyDict(study, _VERIFY), watcher)
        search = Search(
            study,
            Space(bench.layers, heads=bench.heads),
            bench.evaluator(verify, costs).evaluate,
            # What would be taken without a search comes first: so much is always known.
            starts=_different([bench.automatic, *whole_plans(bench.heads), *naive.values()]),
            seed=wanted.seed,
        )
        watcher.say("searching")
        _search(search, 1, budget, watcher)
        if not search.best():
            raise OutOfTime
    if wanted.finalists:
        run = run_seconds(bench.start_seconds, bench.answers, verify(1))
        budget.expect(RUN, run)
        # The best ones, and the plan that would be taken without a search.
        budget.reserve = share(budget.left, run, wanted.finalists + 1, wanted.repeats)
    _search(search, wanted.trials, budget, watcher)
    budget.reserve = 0.0
    rows, first = _candidates(search, naive, max(1, wanted.finalists))
    # Whatever happens to the services, the best that is known by now is there.
    bench.of_model(rows[0].plan).save(wanted.out)
    plain = None
    if wanted.finalists:
        rows, plain = confirmed_rows(
            bench, rows, wanted.report, wanted.repeats, watcher.say, first=first
        )
    chosen = bench.of_model(rows[0].plan)
    chosen.save(wanted.out)
    return Tuned(chosen, rows, tuple(search.tried()), verify, dict(costs), plain)


def _verify_cost(bench: Workbench, measured: StudyDict, watcher: Watcher) -> VerifyCost:
    """As the study has it, else measured. Raises OutOfTime."""
    if "" not in measured:
        watcher.say("measuring verify steps")
        measured[""] = asdict(bench.measure_verify())
    return VerifyCost(tuple(measured[""]["rows"]), tuple(measured[""]["seconds"]))


def _search(search: Search, trials: int | None, budget: Budget, watcher: Watcher) -> None:
    search.run(
        budget=budget,
        most_trials=trials,
        progress=lambda tried: watcher.tried(tried, next(iter(search.best()), None)),
    )


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


def _different(plans: Sequence[LayerPlan]) -> list[LayerPlan]:
    return list(dict.fromkeys(plans))


def _candidates(
    search: Search, naive: Mapping[str, LayerPlan], finalists: int
) -> tuple[tuple[Row, ...], int]:
    """The best plans and the naive ones, as far as they were measured on all prompts, the best
    estimate first; and how many of them should run in the pipeline before any of the others."""
    complete = {tried.plan: tried.estimate for tried in search.tried() if tried.complete}
    best = search.best(finalists)
    named = {tried.plan: f"tuned, no. {place}" for place, tried in enumerate(best, start=1)}
    for name, plan in naive.items():
        if plan in complete:
            named.setdefault(plan, name)
    rows = [Row(name, plan, complete[plan]) for plan, name in named.items()]
    wanted = {*(tried.plan for tried in best), naive[AUTOMATIC]}
    rows.sort(key=lambda row: (row.plan not in wanted, -row.estimate.tokens_per_second))
    return tuple(rows), len(wanted & complete.keys())
