"""`slipstream bench shards`: what a process of the drafter holds, by how many there are."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slipstream.bench.report import write
from slipstream.bench.shards import ShardsSettings, measure_shards
from slipstream.bench.shards_report import document, table
from slipstream.bench.synthetic import Shape, shape_of
from slipstream.core.errors import ConfigurationError
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

_WIDTH = 120


def shards(
    counts: Annotated[
        str, typer.Option(help="Numbers of shards to measure; 1 always is.")
    ] = "1,2,3,4",
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    synthetic: Annotated[
        str,
        typer.Option(help="Instead of a model: random weights, so many, as 350m or 1.5b."),
    ] = "",
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("build/shards.json"),
) -> None:
    """Measure the memory of each process of a drafter that is split into shards.

    Starts real drafters, in one piece and in shards, one after the other, and reads what their
    processes hold once they serve. No sequence is open then: the memory of contexts comes with
    them, and each shard has that of its own layers. A synthetic model is written to the system's
    temporary folder (two bytes for each weight) and removed in the end.
    """
    errors = Console(stderr=True)

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    chosen: Path | Shape
    if synthetic:
        chosen, name = shape_of(synthetic), f"random weights, {synthetic}"
    else:
        chosen, name = resolve(model, progress=progress_on()), served_name(model)
    settings = ShardsSettings(chosen, name, out, numbers("--counts", counts))
    try:
        found = asyncio.run(measure_shards(settings, say))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped; nothing was written")
        raise typer.Exit(130) from None
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table(found))
    write(out, document(found, settings))
    typer.echo(f"written: {out}")


def numbers(option: str, given: str) -> tuple[int, ...]:
    """Raises ConfigurationError where they are not numbers separated by commas, 1 or more each."""
    try:
        found = tuple(int(part) for part in given.split(",") if part.strip())
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ConfigurationError(f"{option} takes numbers from 1 on, as 1,2,4; got {given!r}")
    return found
