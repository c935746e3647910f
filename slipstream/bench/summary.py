"""What the rows say together: the bars, the ideal, and whether all gave the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slipstream.bench.aggregate import RowResult, differing_questions
from slipstream.bench.bars import Bar, IdealComparison, bars, compare_with_ideal
from slipstream.bench.machine import Memory
from slipstream.bench.records import Sample
from slipstream.bench.rows import PLAIN, PLAIN_INT8, SAME_TOKENS, TRANSFORMERS, TRANSFORMERS_PLD


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


def _differing(samples: Sequence[Sample]) -> tuple[dict[str, int], int | None]:
    """Questions with different tokens: by pair of rows, and in all where there may be none."""
    same = [(group[0], other) for group in SAME_TOKENS for other in group[1:]]
    others = [(PLAIN, TRANSFORMERS), (TRANSFORMERS, TRANSFORMERS_PLD), (PLAIN, PLAIN_INT8)]
    counts = {pair: differing_questions(samples, *pair) for pair in (*same, *others)}
    known = {pair: count for pair, count in counts.items() if count is not None}
    ours = [count for pair, count in known.items() if pair in same]
    return {f"{a} vs {b}": n for (a, b), n in known.items()}, sum(ours) if ours else None


def summarize(
    results: Sequence[RowResult],
    samples: Sequence[Sample],
    memory: Mapping[str, Memory],
    *,
    strict: bool,
) -> Summary:
    """What the rows say together.

    Args:
        memory: of the processes, by name.
        strict: whether all our verifiers were; only then no two of their answers may differ.
    """
    rows = {result.name: result for result in results}
    differing, forbidden = _differing(samples)
    ideal = compare_with_ideal(rows)
    verdicts = bars(rows, ideal, memory, forbidden if strict else None)
    unstable = {name: differing_questions(samples, name, name) or 0 for name in rows}
    questions = len({sample.question_id for sample in samples})
    return Summary(verdicts, ideal, differing, unstable, questions)
