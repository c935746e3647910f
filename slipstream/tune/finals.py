"""The best plans in the real pipeline: how much of a budget that gets, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slipstream.bench.machine import cores
from slipstream.bench.setups import Place
from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.tune.answers import Answer
from slipstream.tune.confirm import PLAIN, Confirmed, confirm
from slipstream.tune.evaluate import Estimate
from slipstream.tune.workbench import Workbench

# Services measure more at their start than a search does, and answers have prompts.
_MARGIN = 1.2
_MOST = 0.5
# One run alone says nothing about which plan is better.
_FEWEST_PLANS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One plan of a table. `confirmed` is None where it did not run in the pipeline."""

    name: str
    plan: LayerPlan
    estimate: Estimate
    confirmed: Confirmed | None = None


def run_seconds(start_seconds: float, answers: Sequence[Answer], token_seconds: float) -> float:
    """About how long a run takes, before there was one: two services start one after the other,
    and answer the prompts with drafts and without.

    Args:
        start_seconds: that it took until a model could serve.
        token_seconds: of a step of one row.
    """
    tokens = sum(len(answer.tokens) - answer.num_prompt for answer in answers)
    return _MARGIN * 2 * (start_seconds + tokens * token_seconds)


def share(left: float, run: float, plans: int, repeats: int) -> float:
    """Seconds of those that are left to keep for runs of `plans`: what all repeats take, but half
    of the time at most; none where that is not enough to compare two plans.

    Args:
        run: seconds of one of them.
    """
    kept = min(plans * repeats * run, _MOST * left)
    return kept if kept > min(plans, _FEWEST_PLANS) * run else 0.0


def confirmed_rows(
    bench: Workbench,
    rows: Sequence[Row],
    work: Path,
    repeats: int,
    say: Callable[[str], None],
    *,
    first: int | None = None,
) -> tuple[tuple[Row, ...], Confirmed | None]:
    """Runs the rows in the real pipeline, as far as the budget reaches: the fastest first, then
    those that did not run. And plain decoding beside them, where any ran.

    Args:
        first: so many rows come before the others; None: all are alike.
    """
    settings = bench.settings
    bench.copies.close()
    found = asyncio.run(
        confirm(
            {row.name: bench.of_model(row.plan) for row in rows},
            bench.prompts,
            Place(
                settings.model,
                folder_at(work / "pipeline"),
                tuple(cores()),
                dtype=settings.dtype,
                device=settings.device,
            ),
            placement=settings.placement,
            kv_context=settings.kv_context,
            slowdown=settings.drafter_slowdown,
            max_tokens=settings.max_tokens,
            repeats=repeats,
            budget=bench.budget,
            say=say,
            first=first,
        )
    )
    confirmed = [replace(row, confirmed=found.get(row.name)) for row in rows]
    confirmed.sort(key=_speed, reverse=True)
    return tuple(confirmed), found.get(PLAIN)


def _speed(row: Row) -> tuple[bool, float]:
    """What ran in the pipeline goes before what is only estimated."""
    known = row.confirmed or row.estimate
    return row.confirmed is not None, known.tokens_per_second


def folder_at(path: Path) -> Path:
    """The folder, made where there is none. Raises ConfigurationError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise ConfigurationError(f"cannot make the folder {path}: {failure}") from failure
    return path
