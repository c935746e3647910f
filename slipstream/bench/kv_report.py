"""Table and JSON of acceptance against the drafter's context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from slipstream.bench.kv import KvResult, KvSettings
from slipstream.bench.machine import cores, describe_machine

_POSITIONS = 4


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _each(seconds: float, count: int) -> str:
    """Milliseconds of each, where there are any."""
    return _number(seconds / count * 1000 if count else None, ".1f")


def table(results: Sequence[KvResult]) -> Table:
    """One line for each plan and context; times in milliseconds for each prompt."""
    view = Table(title="Acceptance by the drafter's context; one core each, greedy")
    view.add_column("plan", no_wrap=True)
    view.add_column("context", no_wrap=True)
    positions = [f"at {place}" for place in range(1, _POSITIONS + 1)]
    for heading in ("accepted", *positions, "tok/step", "KB/tok", "pull", "waited", "prefill"):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("left to itself")
    for result in results:
        places = [*result.by_position, *[None] * _POSITIONS][:_POSITIONS]
        pulls = result.prompts if result.pulled else 0
        view.add_row(
            result.plan,
            result.mode,
            _number(result.acceptance),
            *(_number(place) for place in places),
            _number(result.tokens / max(1, result.steps), ".2f"),
            _number(result.bytes_per_token / 1000, ".1f"),
            _each(result.pull_seconds, pulls),
            _each(result.pull_wait_seconds, pulls),
            _each(result.prefill_seconds, result.prompts if result.prefilled else 0),
            ", ".join(f"{count} {reason}" for reason, count in result.fallbacks.items()) or "-",
        )
    return view


def gains(results: Sequence[KvResult]) -> list[str]:
    """One line for each plan: by how much the verifier's context raises acceptance over its own."""
    lines = []
    for plan in dict.fromkeys(result.plan for result in results):
        by_mode = {r.mode: r.acceptance for r in results if r.plan == plan}
        own = by_mode.get("own")
        others = [
            f"{mode} {by_mode[mode] - own:+.3f}"  # type: ignore[operator]
            for mode in ("prompt", "commit")
            if own is not None and by_mode.get(mode) is not None
        ]
        if others:
            lines.append(f"{plan}: acceptance over own context: {', '.join(others)}")
    return lines


def document(results: Sequence[KvResult], settings: KvSettings) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "results": [
            {
                **asdict(result),
                "acceptance": result.acceptance,
                "acceptance_by_position": result.by_position,
                "bytes_per_token": result.bytes_per_token,
            }
            for result in results
        ],
        "plans": {
            name: {
                "precision": plan.precision,
                "skip_attention": sorted(plan.skip_attention),
                "skip_mlp": sorted(plan.skip_mlp),
            }
            for name, plan in settings.plans.items()
        },
        "machine": dict(describe_machine(len(cores()))),
        "run": {
            "model": settings.model_name,
            "questions": str(settings.questions),
            "limit": settings.limit,
            "max_tokens": settings.max_tokens,
            "window": settings.window,
        },
    }
