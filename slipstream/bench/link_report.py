"""Table, JSON and picture of speed against the link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from slipstream.bench.link_run import LinkSettings, PointResult
from slipstream.bench.machine import cores, describe_machine


def table(results: Sequence[PointResult]) -> Table:
    """One line a point; speeds in tokens per second, times in milliseconds."""
    view = Table(title="Speculation, one core each, over a link of a round trip and a bandwidth")
    view.add_column("link", no_wrap=True)
    for heading in ("tok/s", "min-max", "x plain", "acceptance", "mean length", "bytes/token"):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("differing answers", justify="right")
    for result in results:
        row = result.row
        acceptance = "-" if row.acceptance_rate is None else f"{row.acceptance_rate:.3f}"
        length = row.mean_acceptance_length
        view.add_row(
            result.point.name,
            f"{row.tokens_per_second:.1f}",
            f"{row.tokens_per_second_min:.1f}-{row.tokens_per_second_max:.1f}",
            f"{result.ratio:.2f}",
            acceptance,
            "-" if length is None else f"{length:.2f}",
            f"{result.bytes_per_token:.0f}",
            str(result.differing),
        )
    return view


def document(results: Sequence[PointResult], settings: LinkSettings) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "points": [
            {
                "name": result.point.name,
                "plain": result.point.plain,
                "round_trip_ms": result.point.round_trip * 1000,
                "megabits_per_second": result.point.megabits,
                "ratio_to_plain": result.ratio,
                "bytes_per_token": result.bytes_per_token,
                "differing_questions": result.differing,
                "figures": asdict(result.row),
            }
            for result in results
        ],
        "machine": describe_machine(len(cores())),
        "run": {
            "model": settings.model_name,
            "questions_file": settings.questions.name,
            "kv_context": settings.kv_context,
            "max_tokens": settings.max_tokens,
            "repeats": settings.repeats,
            "exactness": settings.exactness,
        },
    }


def draw(path: Path, results: Sequence[PointResult]) -> None:
    """Speed by round trip, a line for each bandwidth, and plain decoding across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    plain = next(result.row.tokens_per_second for result in results if result.point.plain)
    axes.axhline(plain, c="0.5", ls="--", label="plain decoding")
    links = [result for result in results if not result.point.plain]
    for megabits in dict.fromkeys(result.point.megabits for result in links):
        line = sorted(
            (r for r in links if r.point.megabits == megabits), key=lambda r: r.point.round_trip
        )
        times = [result.point.round_trip * 1000 for result in line]
        speeds = [result.row.tokens_per_second for result in line]
        low = [r.row.tokens_per_second - r.row.tokens_per_second_min for r in line]
        high = [r.row.tokens_per_second_max - r.row.tokens_per_second for r in line]
        name = "bandwidth not limited" if megabits is None else f"{megabits:g} Mb/s"
        axes.errorbar(times, speeds, yerr=[low, high], marker="o", capsize=3, label=name)
    axes.set_xlabel("round trip between verifier and drafter, ms")
    axes.set_ylabel("tokens per second")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)
