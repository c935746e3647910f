"""`slipstream bench kv`: what the verifier's keys and values are worth to the drafter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slipstream.bench.kv import MODES, KvSettings, measure_kv, naive_plans
from slipstream.bench.kv_report import document, gains, table
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.report import write
from slipstream.cli.plan_files import load_plans
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.model_folder import num_layers
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

_WIDTH = 130


def kv(
    plans: Annotated[
        str,
        typer.Option(
            help="Layer plan files, comma-separated; empty: 1, 2 and 4 attention and MLP sublayers"
            " skipped, evenly spread."
        ),
    ] = "",
    contexts: Annotated[
        str, typer.Option(help="Of own, prompt, commit; comma-separated.")
    ] = ",".join(MODES),
    questions: Annotated[
        Path, typer.Option(help="Question file in Spec-Bench's format (JSON lines).")
    ] = DEFAULT_QUESTIONS,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many questions, from the tasks in turn.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens for each question.")] = 64,
    window: Annotated[int, typer.Option(min=1, help="Drafts ahead of the last commit.")] = 8,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("build/kv.json"),
) -> None:
    """Measure acceptance, bytes and pull times by the drafter's context, for several layer plans.

    Verifier and drafter run on this machine, one core each; nothing but the model drafts.
    """
    errors = Console(stderr=True)
    folder = resolve(model, progress=progress_on())
    settings = KvSettings(
        questions=questions,
        model=folder,
        model_name=served_name(model),
        out=out,
        plans=_plans(plans, folder),
        modes=tuple(part for mode in contexts.split(",") if (part := mode.strip())),
        window=window,
        limit=limit,
        max_tokens=max_tokens,
    )

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        results = asyncio.run(measure_kv(settings, say))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped; nothing was written")
        raise typer.Exit(130) from None
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table(results))
    for line in gains(results):
        typer.echo(line)
    write(out, document(results, settings))
    typer.echo(f"written: {out}")


def _plans(files: str, model: Path) -> dict[str, LayerPlan]:
    """Raises ConfigurationError where a file is no layer plan, or the model has no config."""
    paths = [Path(part.strip()) for part in files.split(",") if part.strip()]
    if paths:
        return load_plans(paths)
    return naive_plans(num_layers(model))
