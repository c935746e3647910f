"""`slipstream bench`: one table of our configurations beside transformers' own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.report import show
from slipstream.bench.rows import ROWS
from slipstream.bench.run import BenchSettings, run
from slipstream.cli.bench_kv import kv
from slipstream.cli.bench_link import link
from slipstream.cli.bench_pipelining import pipelining
from slipstream.cli.bench_reliability import reliability
from slipstream.cli.bench_serve import serve
from slipstream.cli.bench_shards import shards
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(link)
app.command()(kv)
app.command()(shards)
app.command()(pipelining)
app.command()(serve)
app.command()(reliability)


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    questions: Annotated[
        Path, typer.Option(help="Question file in Spec-Bench's format (JSON lines).")
    ] = DEFAULT_QUESTIONS,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many questions, from the tasks in turn.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens for each question.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Runs; their median is reported.")] = 3,
    rows: Annotated[
        str, typer.Option(help="Comma-separated rows to measure.", show_default=True)
    ] = ",".join(ROWS),
    exactness: Annotated[
        str, typer.Option(help="`auto`, `fast` or `strict`: that of our verifiers.")
    ] = "auto",
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("build/bench.json"),
) -> None:
    """Measure tokens per second, acceptance and step times; greedy, bf16, on this machine's CPU.

    Requests go straight to the verifier: the gateway is not in the path. The logs of the
    processes are left beside the JSON.
    """
    if context.invoked_subcommand is not None:
        return
    errors = Console(stderr=True)
    settings = BenchSettings(
        questions=questions,
        model=resolve(model, progress=progress_on()),
        model_name=served_name(model),
        out=out,
        limit=limit,
        max_tokens=max_tokens,
        repeats=repeats,
        exactness=exactness,
        rows=tuple(name for row in rows.split(",") if (name := row.strip())),
    )
    try:
        results, summary = asyncio.run(
            run(
                settings,
                lambda line: errors.print(line, markup=False, highlight=False, soft_wrap=True),
            )
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("stopped; nothing was written")
        raise typer.Exit(130) from None
    show(results, summary, Console())
    typer.echo(f"written: {out}")
