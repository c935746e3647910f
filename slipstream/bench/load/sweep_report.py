"""Table and picture of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from slipstream.bench.load.statistics import Figures, Latency
from slipstream.bench.load.sweep import Point

_TIMES = ("ttft", "tpot", "gap")
_COLOURS = {"off": "C0", "on": "C1", "automatic": "C2"}


def table(points: Sequence[Point]) -> Table:
    """One line for each mode at each rate; times in milliseconds."""
    view = Table(title="Speculation off, on and automatic by request rate (Poisson arrivals)")
    view.add_column("requests/s", justify="right", no_wrap=True)
    view.add_column("speculation", no_wrap=True)
    headings = ["requests", "faults", "refused", "tok/s", "goodput/s"]
    headings += [f"{time.upper()}\n{part}" for time in _TIMES for part in ("p50", "p95")]
    for heading in headings:
        view.add_column(heading, justify="right", no_wrap=True)
    for point in sorted(points, key=lambda each: each.rate):
        found = point.figures
        view.add_row(
            f"{point.rate:g}",
            point.mode,
            str(found.requests),
            str(found.faults),
            str(found.verdicts.get("refused", 0)),
            f"{found.tokens_per_second:.1f}",
            f"{found.goodput_per_second:.2f}",
            *(_ms(_time(found, time), part) for time in _TIMES for part in ("p50", "p95")),
        )
    return view


def _time(found: Figures, name: str) -> Latency | None:
    latency: Latency | None = getattr(found, name)
    return latency


def _ms(latency: Latency | None, part: str) -> str:
    return "-" if latency is None else f"{1000 * getattr(latency, part):.0f}"


def content(points: Sequence[Point]) -> dict[str, Any]:
    """For the JSON file."""
    return {"points": [{"rate": p.rate, "mode": p.mode, **asdict(p.figures)} for p in points]}


def draw(path: Path, points: Sequence[Point]) -> None:
    """Throughput, TTFT and TPOT against the rate, a colour for each mode; p95 is dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    speed, *times = figure.subplots(1, 3)
    for mode in dict.fromkeys(point.mode for point in points):
        line = sorted((p for p in points if p.mode == mode), key=lambda p: p.rate)
        rates = [p.rate for p in line]
        colour = _COLOURS.get(mode)
        speeds = [p.figures.tokens_per_second for p in line]
        speed.plot(rates, speeds, marker="o", c=colour, label=mode)
        for axes, name in zip(times, ("ttft", "tpot"), strict=True):
            for part, style in (("p50", "-"), ("p95", "--")):
                latencies = [_time(p.figures, name) for p in line]
                values = [float("nan") if x is None else 1000 * getattr(x, part) for x in latencies]
                axes.plot(rates, values, style, marker=".", c=colour, label=f"{mode}, {part}")
    speed.set_ylabel("tokens per second")
    times[0].set_ylabel("time to first token, ms")
    times[0].set_yscale("log")
    times[1].set_ylabel("time per output token, ms")
    for axes in (speed, *times):
        axes.set_xlabel("requests per second")
        axes.legend(fontsize="small")
    speed.set_ylim(bottom=0)
    times[1].set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
