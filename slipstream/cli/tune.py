"""`slipstream tune`: finds the drafter's layer plan by measuring; `tune compare` judges plans."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from slipstream.cli.plan_files import load_plans
from slipstream.core.extras import require
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

if TYPE_CHECKING:
    from slipstream.tune.budget import Budget
    from slipstream.tune.search import Tried
    from slipstream.tune.settings import TuneSettings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ModelOption = Annotated[str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")]
LimitOption = Annotated[
    int | None, typer.Option(min=1, help="At most so many prompts, from the tasks in turn.")
]
TokensOption = Annotated[int, typer.Option(min=1, help="Tokens of an answer.")]
ContextOption = Annotated[
    str,
    typer.Option(help="Keys and values in production: `own`, `prompt` or `commit` (see drafting)."),
]
PlacementOption = Annotated[
    str, typer.Option(help="`separate`: a device for the drafter; `shared`: one for both.")
]
DtypeOption = Annotated[str, typer.Option(help="`auto`, `bfloat16` or `float32`.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ThreadsOption = Annotated[
    int, typer.Option(min=0, help="Threads that a model computes on; 0: its share.")
]
SlowdownOption = Annotated[
    float,
    typer.Option(
        min=1, help="The drafter's device takes so many times as long for a step as this one."
    ),
]
_BUDGET_HELP = (
    "Time for all of it, as 90s, 20m or 1h: loading the model, the search, and in up to half of it"
    " the best plans in the real pipeline. Where it is small these runs are fewer or left out, and"
    " one that is over before a plan can be measured is refused, with what would be enough. It may"
    " end some seconds late: a model is loaded to its end, services get 10 s each to stop, and the"
    " report comes last; the first run for a model may calibrate its head to the end, too. Fetching"
    " a model is not counted."
)
RepeatsOption = Annotated[int, typer.Option(min=0, help="Runs in the real pipeline of each plan.")]


def check_installed() -> None:
    """Raises ConfigurationError where the extra packages are missing."""
    for extra in ("tune", "engine"):
        require(extra, "slipstream tune")


def _resolved(settings: TuneSettings, model: str) -> TuneSettings:
    """The same with the folder of the model, which may take a download.

    Raises:
        ConfigurationError: there is no such device or model.
    """
    from slipstream.engine.placement import resolve_device

    resolve_device(settings.device)
    return replace(settings, model=resolve(model, progress=progress_on()))


class _Bar:
    """A progress bar over the budget, with what was found so far; lines go above it."""

    def __init__(self, bar: Progress, budget: Budget) -> None:
        self._bar = bar
        self._budget = budget
        self._task: Any = None

    def say(self, line: str) -> None:
        _say(self._bar, line)
        if line == "searching":
            self._task = self._bar.add_task("searching", total=self._budget.seconds)

    def tried(self, tried: Tried, best: Tried | None) -> None:
        if self._task is None:
            return
        known = "" if best is None else f", best {best.estimate.speedup:.2f} x plain"
        self._bar.update(
            self._task,
            completed=self._budget.spent,
            description=f"{tried.stage}, plan {tried.number}{known}",
        )


def _say(bar: Progress, line: str) -> None:
    bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(errors: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=errors
    )


@app.callback(invoke_without_command=True)
def tune(
    context: typer.Context,
    model: ModelOption = "default",
    prompts: Annotated[
        Path | None, typer.Option(help="Question file in Spec-Bench's format (default: ours).")
    ] = None,
    limit: LimitOption = None,
    budget: Annotated[str, typer.Option(help=_BUDGET_HELP)] = "20m",
    trials: Annotated[int | None, typer.Option(min=1, help="At most so many plans.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides what is tried.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search there.")] = False,
    kv_context: ContextOption = "prompt",
    placement: PlacementOption = "separate",
    drafter_slowdown: SlowdownOption = 1.0,
    max_tokens: TokensOption = 64,
    finalists: Annotated[
        int,
        typer.Option(min=0, help="Plans that run in the real pipeline, if time allows; 0: none."),
    ] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="At most so many runs of each there.")] = 3,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    out: Annotated[Path, typer.Option(help="Where the plan goes.")] = Path("layer_plan.json"),
    report: Annotated[Path, typer.Option(help="Folder of report and search.")] = Path("build/tune"),
) -> None:
    """Find the layer plan with which the pipeline is fastest on this machine.

    Leave the machine alone meanwhile: what is searched is what is measured.
    """
    if context.invoked_subcommand is not None:
        return
    check_installed()
    from slipstream.tune.budget import Budget, seconds_of

    # What is imported below takes seconds, too.
    time = Budget(seconds_of(budget))
    from slipstream.tune import report as reports
    from slipstream.tune.run import SearchSettings
    from slipstream.tune.run import tune as run_tune
    from slipstream.tune.settings import TUNING_PROMPTS, TuneSettings

    wanted = SearchSettings(report, out, trials, seed, resume, finalists, repeats)
    settings = TuneSettings(
        model=Path(model),
        model_name=served_name(model),
        prompts=prompts or TUNING_PROMPTS,
        limit=limit,
        max_tokens=max_tokens,
        kv_context=kv_context,  # type: ignore[arg-type]  # checked there
        placement=placement,  # type: ignore[arg-type]
        dtype=dtype,
        device=device,
        threads=threads,
        drafter_slowdown=drafter_slowdown,
    )
    with time.paused():
        settings = _resolved(settings, model)
    with _bar(Console(stderr=True)) as bar:
        tuned = run_tune(settings, wanted, time, _Bar(bar, time))
    paths = reports.write(report, settings, wanted, tuned)
    typer.echo("\n".join(reports.table(tuned.rows, tuned.plain)))
    if not tuned.pays:
        typer.echo(f"{reports.NO_GAIN} (slipstream up --drafter off)")
    typer.echo(f"written: {out}, {', '.join(map(str, paths))}")


@app.command()
def compare(
    plan: Annotated[
        list[Path] | None, typer.Option(help="A plan file; may be given several times.")
    ] = None,
    model: ModelOption = "default",
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts not used for tuning (default: those of bench).")
    ] = None,
    limit: LimitOption = None,
    kv_context: ContextOption = "prompt",
    placement: PlacementOption = "separate",
    drafter_slowdown: SlowdownOption = 1.0,
    max_tokens: TokensOption = 64,
    repeats: RepeatsOption = 3,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    report: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("build/compare"),
) -> None:
    """Measure plans beside naive ones, on prompts that were not used for tuning.

    Without --plan it is the shipped plan, where there is one for the model.
    """
    check_installed()
    from slipstream.bench.questions import DEFAULT_QUESTIONS
    from slipstream.core.model_folder import fingerprint
    from slipstream.models.plans import shipped_plan
    from slipstream.tune import report as reports
    from slipstream.tune.compare import compare as run_compare
    from slipstream.tune.settings import TuneSettings

    plans = load_plans(plan or [])
    settings = TuneSettings(
        model=Path(model),
        model_name=served_name(model),
        prompts=prompts or DEFAULT_QUESTIONS,
        limit=limit,
        max_tokens=max_tokens,
        kv_context=kv_context,  # type: ignore[arg-type]  # checked there
        placement=placement,  # type: ignore[arg-type]
        dtype=dtype,
        device=device,
        threads=threads,
        drafter_slowdown=drafter_slowdown,
    )
    settings = _resolved(settings, model)
    shipped = None if plans else shipped_plan(fingerprint(settings.model))
    if shipped is not None:
        plans = {"shipped": shipped}
    with _bar(Console(stderr=True)) as bar:
        rows, plain = run_compare(
            settings, plans, work=report, repeats=repeats, say=partial(_say, bar)
        )
    paths = reports.write_comparison(report, settings, rows, plain)
    typer.echo("\n".join(reports.table(rows, plain)))
    typer.echo(f"written: {', '.join(map(str, paths))}")
