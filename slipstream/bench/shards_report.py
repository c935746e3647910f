"""Table and JSON of what the shards of a drafter hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.table import Table

from slipstream.bench.machine import cores, describe_machine
from slipstream.bench.shards import Held, MemoryOfShards, ShardsSettings


def _kinds(found: MemoryOfShards) -> dict[str, Callable[[Held], int]]:
    """Ways to count what a process holds, by name."""
    return {
        "resident": lambda held: held.memory.resident,
        "private": lambda held: held.memory.private,
        "model": lambda held: max(0, held.memory.private - found.base.private),
        "weights": lambda held: held.weights,
    }


def largest(found: MemoryOfShards, count: int) -> dict[str, int]:
    """Bytes of the process that holds most, for each way to count, of a drafter of `count`."""
    return {name: max(map(of, found.drafters[count])) for name, of in _kinds(found).items()}


def share(found: MemoryOfShards, count: int) -> dict[str, float | None]:
    """The same over that of the drafter in one piece; None where that has nothing."""
    whole = largest(found, 1)
    pairs = largest(found, count).items()
    return {name: size / whole[name] if whole[name] else None for name, size in pairs}


def table(found: MemoryOfShards) -> Table:
    """One line for each number of shards; sizes in MB (10^6 bytes)."""
    view = Table(
        title="The largest shard, MB, and in parts of the drafter in one piece",
        caption=f"model: private beyond the {found.base.private / 1e6:.0f} MB (resident "
        f"{found.base.resident / 1e6:.0f}) of a drafter whose model is next to nothing",
    )
    view.add_column("shards", justify="right")
    for name in _kinds(found):
        view.add_column(name, justify="right", no_wrap=True)
        view.add_column("part", justify="right", no_wrap=True)
    view.add_column("weights of each", no_wrap=True)
    for count, parts in found.drafters.items():
        shares = share(found, count)
        cells = [str(count)]
        for name, size in largest(found, count).items():
            part = shares[name]
            cells += [f"{size / 1e6:.0f}", "-" if part is None else f"{part:.2f}"]
        view.add_row(*cells, ", ".join(f"{held.weights / 1e6:.0f}" for held in parts))
    return view


def document(found: MemoryOfShards, settings: ShardsSettings) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "drafters": [
            {
                "shards": count,
                "processes": [{**asdict(held.memory), "weights": held.weights} for held in parts],
                "largest_bytes": largest(found, count),
                "share_of_whole": share(found, count),
            }
            for count, parts in found.drafters.items()
        ],
        "base_bytes": asdict(found.base),
        "machine": dict(describe_machine(len(cores()))),
        "run": {"model": settings.model_name, "dtype": "bfloat16"},
    }
