"""The table, the verdicts and the JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from slipstream.bench.aggregate import RowResult
from slipstream.bench.bars import Bar, IdealComparison
from slipstream.bench.machine import Memory
from slipstream.bench.records import TASKS
from slipstream.bench.summary import Summary
from slipstream.core.errors import ConfigurationError

_TASK_HEADINGS = ("chat", "transl.", "summ.", "QA", "math", "RAG")
_TABLE_WIDTH = 150


def _cell(value: float | None, form: str, scale: float = 1.0) -> str:
    return "-" if value is None else format(value * scale, form)


def table(results: Sequence[RowResult]) -> Table:
    """One line a row; speeds in tokens per second, times in milliseconds."""
    view = Table(title="Tokens per second, end to end with prefill (x4: of four at once)")
    view.add_column("row", no_wrap=True)
    headings = ["tok/s", "min-max", *_TASK_HEADINGS, "TTFT\nms", "accept-\nance", "mean\nlength"]
    for heading in [*headings, "step\nms", "outside\nmodel", "others'\nCPU"]:
        view.add_column(heading, justify="right", no_wrap=True)
    for row in results:
        view.add_row(
            row.name if row.at_once == 1 else f"{row.name} x{row.at_once}",
            f"{row.tokens_per_second:.1f}",
            f"{row.tokens_per_second_min:.1f}-{row.tokens_per_second_max:.1f}",
            *(_cell(row.tokens_per_second_by_task.get(task), ".1f") for task in TASKS),
            f"{row.ttft_seconds * 1000:.0f}",
            _cell(row.acceptance_rate, ".3f"),
            _cell(row.mean_acceptance_length, ".2f"),
            _cell(row.step_seconds, ".1f", 1000),
            _cell(row.outside_model_fraction, ".1%"),
            _cell(row.others_cpu_fraction, ".1%"),
        )
    return view


def verdicts(summary: Summary) -> list[str]:
    """One line a bar, then the ideal and the comparison of outputs."""
    lines = [bar_line(bar) for bar in summary.bars]
    if summary.ideal is not None:
        lines.append(_ideal_line(summary.ideal))
    for pair, count in summary.differing.items():
        lines.append(f"{pair}: {count} of {summary.questions} questions with different tokens")
    for name, count in summary.unstable.items():
        if count:
            lines.append(f"{name}: {count} questions with different tokens between repeats")
    return lines


def bar_line(bar: Bar) -> str:
    word = {True: "met", False: "NOT MET", None: "not measured"}[bar.met]
    sign = ">=" if bar.at_least else "<="
    return f"{bar.name}: {_cell(bar.measured, '.3f')} ({sign} {bar.wanted}: {word})"


def _ideal_line(ideal: IdealComparison) -> str:
    return (
        f"speed ratio c {ideal.speed_ratio:.2f}, "
        f"per-token acceptance {ideal.token_acceptance:.3f}: "
        f"ideal {ideal.ideal_speedup:.2f} x plain (window {ideal.window}), "
        f"measured {ideal.measured_speedup:.2f} x ({ideal.fraction:.0%} of it); "
        f"where neither ever waits: ideal {ideal.free_running_speedup:.2f} x"
    )


def document(
    results: Sequence[RowResult],
    summary: Summary,
    memory: Mapping[str, Memory],
    machine: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of bench.json. `memory` is of processes, `run` the settings of the run."""
    bars = [{**asdict(bar), "met": bar.met} for bar in summary.bars]
    ideal = summary.ideal
    return {
        "rows": [asdict(row) for row in results],
        "summary": {
            "bars": bars,
            "speed_ratio": None if ideal is None else ideal.speed_ratio,
            "ideal": None if ideal is None else {**asdict(ideal), "fraction": ideal.fraction},
            "differing_questions": summary.differing,
            "questions_unstable_between_repeats": summary.unstable,
            "questions": summary.questions,
        },
        "memory_bytes": {name: asdict(held) for name, held in memory.items()},
        "machine": dict(machine),
        "run": dict(run),
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Raises ConfigurationError where the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as failure:
        raise ConfigurationError(f"cannot write {path}: {failure}") from failure


def show(results: Sequence[RowResult], summary: Summary, console: Console) -> None:
    # In a narrow terminal lines wrap, which is ugly; figures cut off would be lost.
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table(results))
    for line in verdicts(summary):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
