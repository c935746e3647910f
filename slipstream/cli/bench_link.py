"""`slipstream bench link`: what the network between verifier and drafter costs."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slipstream.bench.link import precise_loop
from slipstream.bench.link_report import document, draw, table
from slipstream.bench.link_run import LinkSettings, measure_links
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.report import write
from slipstream.core.errors import ConfigurationError
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

_WIDTH = 110


def link(
    round_trips: Annotated[
        str, typer.Option(help="Round trips to measure, in milliseconds.")
    ] = "0,1,5,20",
    bandwidths: Annotated[
        str, typer.Option(help="Bandwidths in Mb/s, in each direction; 0: not limited.")
    ] = "0",
    kv_context: Annotated[
        str, typer.Option(help="The drafter's: own, prompt or commit. Pulls use the link, too.")
    ] = "prompt",
    questions: Annotated[
        Path, typer.Option(help="Question file in Spec-Bench's format (JSON lines).")
    ] = DEFAULT_QUESTIONS,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many questions, from the tasks in turn.")
    ] = 6,
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens for each question.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; their median is reported.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the JSON goes; the picture beside it.")] = Path(
        "build/link.json"
    ),
) -> None:
    """Measure speculation over a simulated network between verifier and drafter.

    Both run on this machine, one core each; what they say to each other goes through a proxy that
    delays it and limits its bandwidth, keys and values included.
    """
    errors = Console(stderr=True)
    settings = LinkSettings(
        questions=questions,
        model=resolve(model, progress=progress_on()),
        model_name=served_name(model),
        out=out,
        round_trips_ms=numbers("--round-trips", round_trips),
        megabits=tuple(width or None for width in numbers("--bandwidths", bandwidths)),
        kv_context=kv_context,
        limit=limit,
        max_tokens=max_tokens,
        repeats=repeats,
    )

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            results = runner.run(measure_links(settings, say))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped; nothing was written")
        raise typer.Exit(130) from None
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table(results))
    write(out, document(results, settings))
    typer.echo(f"written: {out}")
    picture = out.with_suffix(".png")
    if find_spec("matplotlib") is None:
        typer.echo("no picture: it needs matplotlib (pip install 'slipstream-serve[tune]')")
    else:
        draw(picture, results)
        typer.echo(f"written: {picture}")


def numbers(option: str, given: str) -> tuple[float, ...]:
    """Raises ConfigurationError where they are not numbers separated by commas."""
    try:
        return tuple(float(part) for part in given.split(",") if part.strip())
    except ValueError:
        raise ConfigurationError(f"{option} takes numbers as 0,1,5, got {given!r}") from None
