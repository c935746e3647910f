"""The bars, the ideal, and whether all rows gave the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slipstream.bench.aggregate import RowResult, differing_questions
from slipstream.bench.records import (
    PLAIN,
    PLAIN_ALL,
    SPECULATIVE,
    TRANSFORMERS,
    TRANSFORMERS_PLD,
    Sample,
)
from slipstream.core.ideal import best_ideal

MAX_OUTSIDE_MODEL = 0.05


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
        measured_speedup: speculative over plain-1core, prefill included on both sides.
    """

    token_acceptance: float
    speed_ratio: float
    window: int
    ideal_speedup: float
    measured_speedup: float

    @property
    def fraction(self) -> float:
        return self.measured_speedup / self.ideal_speedup


@dataclass(frozen=True, slots=True)
class Summary:
    """What the rows say together.

    Attributes:
        differing: pair of rows -> number of questions with different tokens.
        unstable: row -> questions with different tokens in different repeats of that row.
    """

    bars: tuple[Bar, ...]
    ideal: IdealComparison | None
    differing: dict[str, int]
    unstable: dict[str, int]
    questions: int


def _ratio(rows: Mapping[str, RowResult], over: str, under: str) -> float | None:
    if over not in rows or under not in rows:
        return None
    return rows[over].tokens_per_second / rows[under].tokens_per_second


def _bars(rows: Mapping[str, RowResult]) -> tuple[Bar, ...]:
    ratios = [(SPECULATIVE, PLAIN, 1.5), (SPECULATIVE, TRANSFORMERS, 1.7)]
    ratios.append((PLAIN_ALL, TRANSFORMERS, 1.8))
    outside = rows[SPECULATIVE].outside_model_fraction if SPECULATIVE in rows else None
    return (
        *(Bar(f"{o} / {u}", _ratio(rows, o, u), wanted, True) for o, u, wanted in ratios),
        Bar("share of a verify step outside the model", outside, MAX_OUTSIDE_MODEL, False),
    )


def _ideal(rows: Mapping[str, RowResult]) -> IdealComparison | None:
    measured = _ratio(rows, SPECULATIVE, PLAIN)
    if measured is None:
        return None
    acceptance = rows[SPECULATIVE].token_acceptance
    plain, draft = rows[PLAIN].plain_step_seconds, rows[SPECULATIVE].draft_step_seconds
    if acceptance is None or plain is None or draft is None:
        return None
    best = best_ideal(acceptance, plain / draft)
    return IdealComparison(acceptance, plain / draft, best.window, best.speedup, measured)


def summarize(results: Sequence[RowResult], samples: Sequence[Sample]) -> Summary:
    rows = {result.name: result for result in results}
    pairs = [(PLAIN, SPECULATIVE), (PLAIN, PLAIN_ALL), (PLAIN, TRANSFORMERS)]
    pairs.append((TRANSFORMERS, TRANSFORMERS_PLD))
    differing = {
        f"{left} vs {right}": count
        for left, right in pairs
        if (count := differing_questions(samples, left, right)) is not None
    }
    unstable = {name: differing_questions(samples, name, name) or 0 for name in rows}
    questions = len({sample.question_id for sample in samples})
    return Summary(_bars(rows), _ideal(rows), differing, unstable, questions)
