"""`slipstream bench pipelining`: how busy several sequences keep a drafter's shards."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from slipstream.bench.machine import cores, describe_machine
from slipstream.bench.pipelining import Pipelined, measure_pipelining
from slipstream.bench.questions import DEFAULT_QUESTIONS, encode, load_questions
from slipstream.bench.report import write
from slipstream.bench.setups import Place
from slipstream.cli.bench_shards import numbers
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on


def pipelining(
    counts: Annotated[str, typer.Option(help="Numbers of shards.")] = "1,2",
    sequences: Annotated[str, typer.Option(help="Numbers of sequences at once.")] = "1,2,4,8",
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="For each of them.")] = 4.0,
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("build/pipelining.json"),
) -> None:
    """Measure how several sequences keep the shards of a drafter busy.

    Each shard computes on a core of its own. Instead of a verifier there is something that agrees
    with every draft at once, so the row of shards alone is measured: one sequence goes through it
    shard by shard, several are in different shards at a time.
    """
    errors = Console(stderr=True)
    folder = resolve(model, progress=progress_on())
    prompts, _ = encode(load_questions(DEFAULT_QUESTIONS)[:1], folder, 1)
    place = Place(folder, out.parent / f"{out.stem}-logs", tuple(cores()))
    try:
        found = asyncio.run(
            measure_pipelining(
                place,
                prompts[0].token_ids,
                numbers("--counts", counts),
                numbers("--sequences", sequences),
                seconds,
                lambda line: errors.print(line, markup=False, highlight=False, soft_wrap=True),
            )
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        errors.print("stopped; nothing was written")
        raise typer.Exit(130) from None
    Console().print(_table(found))
    rows = [
        {"shards": f.shards, "sequences": f.sequences, "drafts_per_second": f.rate, "busy": f.busy}
        for f in found
    ]
    write(
        out, {"machine": describe_machine(len(cores())), "model": served_name(model), "rows": rows}
    )
    typer.echo(f"written: {out}")


def _table(found: list[Pipelined]) -> Table:
    view = Table(title="Drafts per second; each shard on a core of its own")
    for name in ("shards", "sequences", "drafts/s", "x one sequence", "busy, each shard"):
        view.add_column(name, justify="right")
    first = {each.shards: each.rate for each in reversed(found)}
    for each in found:
        busy = ", ".join(f"{share:.2f}" for share in each.busy) or "-"
        gain = f"{each.rate / first[each.shards]:.2f}" if first[each.shards] else "-"
        view.add_row(str(each.shards), str(each.sequences), f"{each.rate:.0f}", gain, busy)
    return view
