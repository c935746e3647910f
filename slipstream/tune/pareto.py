"""Cost against acceptance: the plans that no other beats in both, and a picture of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slipstream.tune.run import Tuned
from slipstream.tune.search import Tried
from slipstream.tune.settings import TuneSettings


def pareto_front(tried: Sequence[Tried]) -> list[Tried]:
    """Of the plans measured on all prompts: those that no other beats in cost and acceptance."""
    complete = sorted(
        (t for t in tried if t.complete),
        key=lambda t: (t.estimate.draft_seconds, -t.estimate.acceptance),
    )
    front: list[Tried] = []
    for candidate in complete:
        if not front or candidate.estimate.acceptance > front[-1].estimate.acceptance:
            front.append(candidate)
    return front


def draw(path: Path, settings: TuneSettings, tuned: Tuned) -> None:
    """Every plan by the cost of its draft step and its acceptance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()

    def points(found: Sequence[Tried]) -> tuple[list[float], list[float]]:
        cost = [t.estimate.draft_seconds / t.estimate.verify_seconds for t in found]
        return cost, [t.estimate.acceptance for t in found]

    given_up = [t for t in tuned.tried if not t.complete]
    axes.scatter(*points(given_up), s=9, c="0.75", label="given up early")
    complete = [t for t in tuned.tried if t.complete]
    speed = [t.estimate.speedup for t in complete]
    drawn = axes.scatter(*points(complete), s=18, c=speed, cmap="viridis", label="all prompts")
    axes.plot(*points(pareto_front(tuned.tried)), "-", c="tab:red", lw=1, label="Pareto front")
    chosen = [t for t in complete if t.plan == replace(tuned.plan, model_fingerprint="")]
    axes.scatter(*points(chosen[:1]), s=90, marker="*", c="tab:red", label="chosen")
    axes.set_xlabel("draft step / verify step")
    axes.set_ylabel("acceptance of a draft")
    axes.set_title(f"{settings.model_name}, KV context {settings.kv_context}")
    axes.legend(loc="lower right")
    figure.colorbar(drawn, label="speed against plain decoding")
    figure.savefig(path, dpi=120)
