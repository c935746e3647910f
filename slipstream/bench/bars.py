"""What is wanted of the figures, and the ideal that the overlap is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from slipstream.bench.aggregate import RowResult
from slipstream.bench.machine import Memory
from slipstream.bench.rows import (
    BASE,
    BEST,
    INT8,
    INT8_SEPARATE,
    NUM_SHARDS,
    PLAIN,
    PLAIN_ALL,
    PLAIN_INT8,
    PLAIN_INT8_ONE,
    RANDOM,
    SEPARATE,
    SHARDS,
    SLOW,
    TRANSFORMERS,
    TRANSFORMERS_PLD,
    WHOLE,
    drafter_name,
)
from slipstream.core.ideal import best_ideal, free_running_speedup

# The first row's tokens per second over the second's.
_RATIOS = (
    (PLAIN_ALL, TRANSFORMERS, 1.8),
    (SEPARATE, PLAIN, 1.8),
    (BEST, TRANSFORMERS, 3.0),
    (BEST, TRANSFORMERS_PLD, 2.0),
    (INT8_SEPARATE, PLAIN_INT8_ONE, 1.3),
    (INT8, PLAIN_INT8, 1.3),
    (RANDOM, PLAIN, 0.97),
    (SLOW, PLAIN, 0.97),
    (SHARDS, WHOLE, 0.9),
)
_LEAST_OF_A_TASK = 1.8
_LEAST_OF_THE_IDEAL = 0.85
_MOST_OUTSIDE_MODEL = 0.05
_MOST_OF_A_SHARD = 0.75
# How far a drafter runs ahead where nobody says otherwise.
_WINDOW = 8


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and what is wanted of it. `measured` and `met` are None where rows are missing."""

    name: str
    measured: float | None
    wanted: float
    at_least: bool

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        if self.at_least:
            return self.measured >= self.wanted
        return self.measured <= self.wanted


@dataclass(frozen=True, slots=True)
class IdealComparison:
    """PEARL's ideal at the measured acceptance and speed ratio, beside what was measured.

    Attributes:
        token_acceptance: per-token acceptance probability put into the formula.
        speed_ratio: c, time of a plain verifier step over that of a draft step.
        window, ideal_speedup: the best window of the formula and its speedup.
        measured_speedup: speculative-separate over plain-1core, prefill included on both sides.
        free_running_speedup: the same ideal where neither side ever waits; see core.ideal.
    """

    token_acceptance: float
    speed_ratio: float
    window: int
    ideal_speedup: float
    measured_speedup: float
    free_running_speedup: float

    @property
    def fraction(self) -> float:
        return self.measured_speedup / self.ideal_speedup


def _ratio(rows: Mapping[str, RowResult], over: str, under: str) -> float | None:
    if over not in rows or under not in rows:
        return None
    return rows[over].tokens_per_second / rows[under].tokens_per_second


def _least_of_a_task(rows: Mapping[str, RowResult], over: str, under: str) -> float | None:
    """The ratio of two rows on the task where it is lowest."""
    if over not in rows or under not in rows:
        return None
    ours, theirs = (rows[name].tokens_per_second_by_task for name in (over, under))
    return min(ours[task] / theirs[task] for task in ours.keys() & theirs.keys())


def _shard_share(memory: Mapping[str, Memory]) -> float | None:
    """What the model takes in the largest shard over what it takes in the drafter in one piece:
    private memory beyond that of a drafter whose model is next to nothing."""
    names = [drafter_name(WHOLE), *(drafter_name(SHARDS, shard) for shard in range(NUM_SHARDS))]
    if not memory.keys() >= {BASE, *names}:
        return None
    whole, *shards = (memory[name].private - memory[BASE].private for name in names)
    return max(shards) / whole if whole > 0 else None


def bars(
    rows: Mapping[str, RowResult],
    ideal: IdealComparison | None,
    memory: Mapping[str, Memory],
    differing: int | None,
) -> tuple[Bar, ...]:
    """All bars; `differing` are the answers that differ where none may, None where some may."""
    outside = rows[SEPARATE].outside_model_fraction if SEPARATE in rows else None
    share = None if ideal is None else ideal.fraction
    least = _least_of_a_task(rows, BEST, TRANSFORMERS)
    return (
        *(Bar(f"{o} / {u}", _ratio(rows, o, u), wanted, True) for o, u, wanted in _RATIOS),
        Bar(f"{BEST} / {TRANSFORMERS}, least of a task", least, _LEAST_OF_A_TASK, True),
        Bar("share of the ideal", share, _LEAST_OF_THE_IDEAL, True),
        Bar("share of a verify step outside the model", outside, _MOST_OUTSIDE_MODEL, False),
        Bar(
            "memory for the model: a shard / the whole",
            _shard_share(memory),
            _MOST_OF_A_SHARD,
            False,
        ),
        Bar("answers that differ where none may", differing, 0, False),
    )


def compare_with_ideal(rows: Mapping[str, RowResult]) -> IdealComparison | None:
    """None where a row or a step time is missing."""
    measured = _ratio(rows, SEPARATE, PLAIN)
    if measured is None:
        return None
    acceptance = rows[SEPARATE].token_acceptance
    # The plain row's own steps: what its verifier reports also holds steps beside a drafter.
    plain, draft = rows[PLAIN].step_seconds, rows[SEPARATE].draft_step_seconds
    if acceptance is None or plain is None or draft is None:
        return None
    ratio = plain / draft
    best = best_ideal(acceptance, ratio)
    free = free_running_speedup(acceptance, ratio, _WINDOW)
    return IdealComparison(acceptance, ratio, best.window, best.speedup, measured, free)
