"""What a run found, for programs (JSON), for readers (Markdown) and as a picture (PNG)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slipstream.bench.machine import cores, describe_machine
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.tune.confirm import Confirmed
from slipstream.tune.finals import Row
from slipstream.tune.pareto import draw, pareto_front
from slipstream.tune.run import SearchSettings, Tuned
from slipstream.tune.search import Tried
from slipstream.tune.settings import TuneSettings

NO_GAIN = "No plan is faster than plain decoding here: serve without a drafter."


def document(settings: TuneSettings, wanted: SearchSettings, tuned: Tuned) -> dict[str, Any]:
    """Everything, as JSON values."""
    return {
        "model": settings.model_name,
        "model_fingerprint": tuned.plan.model_fingerprint,
        "kv_context": settings.kv_context,
        "placement": settings.placement,
        "drafter_slowdown": settings.drafter_slowdown,
        "prompts": settings.prompts.name,
        "max_tokens": settings.max_tokens,
        "seed": wanted.seed,
        "machine": describe_machine(len(cores())),
        "plan": _plan(tuned.plan),
        "verify_seconds": dict(zip(map(str, tuned.verify.rows), tuned.verify.seconds, strict=True)),
        "draft_costs": {name: dict(cost) for name, cost in tuned.draft_costs.items()},
        "plain": None if tuned.plain is None else asdict(tuned.plain),
        "rows": [_row(row) for row in tuned.rows],
        "pareto": [tried.number for tried in pareto_front(tuned.tried)],
        "tried": [
            {
                "number": tried.number,
                "stage": tried.stage,
                "complete": tried.complete,
                "plan": _plan(tried.plan),
                "estimate": tried.estimate.as_dict(),
            }
            for tried in tuned.tried
        ],
    }


def write(folder: Path, settings: TuneSettings, wanted: SearchSettings, tuned: Tuned) -> list[Path]:
    """Writes report.json, report.md and pareto.png. Raises ConfigurationError."""
    paths = [folder / name for name in ("report.json", "report.md", "pareto.png")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(document(settings, wanted, tuned), indent=1) + "\n")
        paths[1].write_text(markdown(settings, wanted, tuned))
        draw(paths[2], settings, tuned)
    except OSError as failure:
        raise ConfigurationError(f"cannot write the report to {folder}: {failure}") from failure
    return paths


def write_comparison(
    folder: Path, settings: TuneSettings, rows: Sequence[Row], plain: Confirmed | None
) -> list[Path]:
    """Writes compare.json and compare.md. Raises ConfigurationError."""
    paths = [folder / name for name in ("compare.json", "compare.md")]
    data = {
        "model": settings.model_name,
        "kv_context": settings.kv_context,
        "placement": settings.placement,
        "drafter_slowdown": settings.drafter_slowdown,
        "prompts": settings.prompts.name,
        "max_tokens": settings.max_tokens,
        "machine": describe_machine(len(cores())),
        "plain": None if plain is None else asdict(plain),
        "rows": [_row(row) for row in rows],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(json.dumps(data, indent=1) + "\n")
        paths[1].write_text("\n".join(table(rows, plain)) + "\n")
    except OSError as failure:
        raise ConfigurationError(f"cannot write the table to {folder}: {failure}") from failure
    return paths


def markdown(settings: TuneSettings, wanted: SearchSettings, tuned: Tuned) -> str:
    complete = sum(tried.complete for tried in tuned.tried)
    steps = ", ".join(
        f"{seconds * 1e3:.1f} ({rows})"
        for rows, seconds in zip(tuned.verify.rows, tuned.verify.seconds, strict=True)
    )
    lines = [
        f"# Layer plan for {settings.model_name}",
        "",
        (
            f"Model {tuned.plan.model_fingerprint}, KV context `{settings.kv_context}`, placement "
            f"`{settings.placement}`, drafter's device {settings.drafter_slowdown:g} times as slow "
            f"as this one, seed {wanted.seed}. {len(tuned.tried)} plans tried, "
            f"{complete} of them on all prompts of {settings.prompts.name}. A verify step takes, "
            f"in ms (rows): {steps}."
        ),
        "",
        (
            f"Chosen: {tuned.plan.describe()}; attention {_layers(tuned.plan.skip_attention)}, "
            f"MLP {_layers(tuned.plan.skip_mlp)}."
        ),
        *([] if tuned.pays else [NO_GAIN]),
        "",
        *table(tuned.rows, tuned.plain),
        "",
        "Cost against acceptance: ![Pareto front](pareto.png)",
        "",
        "## What skipping one sublayer does",
        "",
        *_sensitivity(tuned.tried),
        "",
    ]
    return "\n".join(lines)


def table(rows: Sequence[Row], plain: Confirmed | None) -> list[str]:
    """Lines of a Markdown table."""
    columns = ["plan", "skipped attention, MLP", "draft step, ms", "acceptance", "draft length"]
    columns += ["tokens/s, from parts", "tokens/s, pipeline", "acceptance, pipeline"]
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in rows:
        plan, estimate, measured = row.plan, row.estimate, row.confirmed
        pipeline = "" if measured is None else _spread(measured)
        accepted = (
            "" if measured is None or not measured.acceptance else f"{measured.acceptance:.3f}"
        )
        lines.append(
            f"| {row.name}: {plan.precision}, head {plan.head_precision} | "
            f"{len(plan.skip_attention)}, {len(plan.skip_mlp)} | "
            f"{estimate.draft_seconds * 1e3:.2f} | {estimate.acceptance:.3f} | {estimate.window} | "
            f"{estimate.tokens_per_second:.1f} | {pipeline} | {accepted} |"
        )
    if rows:
        alone = 1 / rows[0].estimate.verify_seconds
        pipeline = "" if plain is None else _spread(plain)
        lines.append(f"| plain decoding | | | | | {alone:.1f} | {pipeline} | |")
    return lines


def _spread(measured: Confirmed) -> str:
    low, high = min(measured.rates), max(measured.rates)
    differ = f", {measured.differing} answers differ" if measured.differing else ""
    return f"{measured.tokens_per_second:.1f} ({low:.1f} to {high:.1f}){differ}"


def _sensitivity(tried: Sequence[Tried]) -> list[str]:
    sweep = [t for t in tried if t.stage == "sweep"]
    if not sweep:
        return ["The search ended before."]
    sweep.sort(key=lambda t: -t.estimate.tokens_per_second)
    lines = ["| sublayer | tokens/s | acceptance | prompts |", "| --- | --- | --- | --- |"]
    base = _common(sweep)
    for t in sweep:
        only = [f"attention {i}" for i in sorted(t.plan.skip_attention - base.skip_attention)]
        only += [f"MLP {i}" for i in sorted(t.plan.skip_mlp - base.skip_mlp)]
        estimate = t.estimate
        lines.append(
            f"| {', '.join(only)} | {estimate.tokens_per_second:.1f} | "
            f"{estimate.acceptance:.3f} | {estimate.prompts} |"
        )
    return lines


def _common(sweep: Sequence[Tried]) -> LayerPlan:
    """What all of a sweep skip: the plan that it began with."""
    attention = frozenset.intersection(*(t.plan.skip_attention for t in sweep))
    mlp = frozenset.intersection(*(t.plan.skip_mlp for t in sweep))
    plan = sweep[0].plan
    if len(sweep) == 1:
        return LayerPlan(plan.precision, plan.head_precision)
    return LayerPlan(plan.precision, plan.head_precision, attention, mlp)


def _plan(plan: LayerPlan) -> dict[str, Any]:
    data = asdict(plan)
    data["skip_attention"] = sorted(plan.skip_attention)
    data["skip_mlp"] = sorted(plan.skip_mlp)
    del data["model_fingerprint"]
    return data


def _row(row: Row) -> dict[str, Any]:
    confirmed = None if row.confirmed is None else asdict(row.confirmed)
    return {
        "name": row.name,
        "plan": _plan(row.plan),
        "estimate": row.estimate.as_dict(),
        "confirmed": confirmed,
    }


def _layers(layers: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(layers))) or "none"
