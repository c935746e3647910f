"""`slipstream bench serve`: the whole product under load, speculation off, on and automatic."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slipstream.bench.configurations import Progress
from slipstream.bench.load.batch import batch
from slipstream.bench.load.long_prompt import long_prompt
from slipstream.bench.load.outcomes import Outcome
from slipstream.bench.load.overload import overload
from slipstream.bench.load.second_turn import second_turn
from slipstream.bench.load.serve import Findings, ServeSettings, document
from slipstream.bench.load.statistics import Slo
from slipstream.bench.load.sweep import Point, sweep
from slipstream.bench.load.sweep_report import content, draw, table
from slipstream.bench.load.workload import WorkloadSettings
from slipstream.bench.processes import end_on_signals
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.report import bar_line, write
from slipstream.cli.bench_link import numbers
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

_WIDTH = 130


class Scenario(StrEnum):
    sweep = "sweep"
    batch16 = "batch16"
    long_prompt = "long-prompt"
    second_turn = "second-turn"
    overload = "overload"


_RUNS = {
    Scenario.batch16: batch,
    Scenario.long_prompt: long_prompt,
    Scenario.second_turn: second_turn,
    Scenario.overload: overload,
}


def serve(
    scenario: Annotated[
        Scenario, typer.Option(help="Rates from idle to saturation, or one question under load.")
    ] = Scenario.sweep,
    rates: Annotated[
        str, typer.Option(help="Requests per second, as 0.5,1,2; empty: found by measuring.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=1, help="How long requests come at a rate.")] = 30.0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of everything, in turn.")] = 1,
    draft_length: Annotated[
        int, typer.Option(min=1, help="Drafts of a step where speculation is always on.")
    ] = 4,
    questions: Annotated[
        Path, typer.Option(help="Question file in Spec-Bench's format (JSON lines).")
    ] = DEFAULT_QUESTIONS,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many questions.")] = None,
    chats: Annotated[int, typer.Option(min=0, help="Made-up conversations beside them.")] = 12,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of an answer.")] = 96,
    slo_ttft: Annotated[float, typer.Option(help="Seconds to the first token, for goodput.")] = 2.0,
    slo_tpot: Annotated[float, typer.Option(help="Seconds a token after it, for goodput.")] = 0.1,
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    up: Annotated[
        list[str] | None, typer.Option(help="A further word for `slipstream up`; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the JSON goes: build/serve.json, or by scenario.")
    ] = None,
) -> None:
    """Measure the product under load: gateway, verifier and drafter as `slipstream up` starts them.

    Every answer is compared with the known one, computed alone before the load. Ends with 1 where
    an answer was wrong, cut off or missing.
    """
    name = "serve" if scenario is Scenario.sweep else f"serve-{scenario.value}"
    settings = ServeSettings(
        model=resolve(model, progress=progress_on()),
        model_name=served_name(model),
        out=out or Path("build") / f"{name}.json",
        workload=WorkloadSettings(questions, limit, chats, max_tokens),
        rates=numbers("--rates", rates),
        seconds=seconds,
        repeats=repeats,
        draft_length=draft_length,
        slo=Slo(slo_ttft, slo_tpot),
        options=tuple(up or ()),
    )
    errors = Console(stderr=True)

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        findings, outcomes, points = asyncio.run(_run(scenario, settings, say))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped; nothing was written")
        raise typer.Exit(130) from None
    _show(findings, points, settings)
    write(settings.out, document(findings, settings, outcomes))
    typer.echo(f"written: {settings.out}")
    if next(bar for bar in findings.bars if bar.name.startswith("wrong")).measured:
        raise typer.Exit(1)


async def _run(
    scenario: Scenario, settings: ServeSettings, say: Progress
) -> tuple[Findings, Sequence[Outcome], Sequence[Point]]:
    end_on_signals()
    if scenario is not Scenario.sweep:
        findings, outcomes = await _RUNS[scenario](settings, say)
        return findings, outcomes, ()
    points, bars, outcomes = await sweep(settings, say)
    return Findings("sweep", bars, content(points)), outcomes, points


def _show(findings: Findings, points: Sequence[Point], settings: ServeSettings) -> None:
    console = Console()
    console.width = max(console.width, _WIDTH)
    if points:
        console.print(table(points))
    for line in (*findings.lines, *map(bar_line, findings.bars)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if points and find_spec("matplotlib") is None:
        typer.echo("no picture: it needs matplotlib (pip install 'slipstream-serve[tune]')")
    elif points:
        picture = settings.out.with_suffix(".png")
        picture.parent.mkdir(parents=True, exist_ok=True)
        draw(picture, points)
        typer.echo(f"written: {picture}")
