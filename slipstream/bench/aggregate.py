"""From samples to one result a row. Rates are total tokens over total seconds of a repeat, and
the median over the repeats is reported: a slow question weighs as much as it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from slipstream.bench.records import TASKS, Sample, Speculation
from slipstream.core.ideal import token_acceptance


@dataclass(frozen=True, slots=True)
class RowResult:
    """One row of the table. None means "does not apply" or "not known".

    Attributes:
        tokens_per_second: median over the repeats; _min and _max are its spread. Of all
            together where `at_once` run side by side.
        ttft_seconds: median over all generations.
        acceptance_rate: accepted over drafted tokens.
        token_acceptance: probability that a draft token is accepted, given those before it.
        mean_acceptance_length: tokens of a verify step with drafts, the verifier's own included.
        tokens_per_step: tokens of a decoding step, with drafts or without.
        step_seconds, model_seconds: mean of one step after the first token, and of its model part.
        outside_model_fraction: share of those steps' time outside the model's forward pass.
        plain_step_seconds, draft_step_seconds: median of what the verifier reported.
        others_cpu_fraction: processor time of the other rows' idle processes over wall time.
    """

    name: str
    tokens_per_second: float
    tokens_per_second_min: float
    tokens_per_second_max: float
    tokens_per_second_by_task: dict[str, float]
    ttft_seconds: float
    acceptance_rate: float | None
    token_acceptance: float | None
    mean_acceptance_length: float | None
    tokens_per_step: float | None
    step_seconds: float | None
    model_seconds: float | None
    outside_model_fraction: float | None
    plain_step_seconds: float | None
    draft_step_seconds: float | None
    others_cpu_fraction: float | None
    generated_tokens: int
    generations: int
    at_once: int


def _rate(samples: Iterable[Sample]) -> float:
    tokens, seconds = 0, 0.0
    for sample in samples:
        tokens += len(sample.generation.token_ids)
        seconds += sample.share_seconds
    return tokens / seconds


def _rates(samples: Sequence[Sample]) -> list[float]:
    """Tokens per second of each repeat."""
    repeats: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        repeats[sample.repeat].append(sample)
    return [_rate(group) for group in repeats.values()]


def _speculation(samples: Sequence[Sample]) -> Speculation:
    total = Speculation()
    for sample in samples:
        total = total + (sample.generation.speculation or Speculation())
    return total


def _median_of(values: Iterable[float]) -> float | None:
    known = [value for value in values if value > 0.0]
    return median(known) if known else None


def _others_cpu(samples: Sequence[Sample]) -> float | None:
    known = [s for s in samples if s.others_cpu_seconds is not None]
    wall = sum(s.share_seconds for s in known)
    return sum(s.others_cpu_seconds or 0.0 for s in known) / wall if known else None


def aggregate_row(name: str, samples: Sequence[Sample]) -> RowResult:
    """Sums up the samples of one row, at least one."""
    rates = _rates(samples)
    by_task = {
        task: median(_rates(group))
        for task in TASKS
        if (group := [sample for sample in samples if sample.task == task])
    }
    tokens = sum(len(sample.generation.token_ids) for sample in samples)
    spec = _speculation(samples)
    has_drafts = spec.drafted > 0 and spec.spec_steps > 0
    engine = [sample.engine for sample in samples if sample.engine is not None]
    steps = sum(cost.steps for cost in engine)
    step_seconds = sum(cost.step_seconds for cost in engine)
    model_seconds = sum(cost.model_seconds for cost in engine)
    return RowResult(
        name=name,
        tokens_per_second=median(rates),
        tokens_per_second_min=min(rates),
        tokens_per_second_max=max(rates),
        tokens_per_second_by_task=by_task,
        ttft_seconds=median(sample.generation.ttft_seconds for sample in samples),
        acceptance_rate=spec.accepted / spec.drafted if has_drafts else None,
        token_acceptance=(
            token_acceptance(spec.accepted, spec.drafted, spec.spec_steps) if has_drafts else None
        ),
        mean_acceptance_length=1.0 + spec.accepted / spec.spec_steps if has_drafts else None,
        tokens_per_step=tokens / spec.steps if spec.steps else None,
        step_seconds=step_seconds / steps if steps else None,
        model_seconds=model_seconds / steps if steps else None,
        outside_model_fraction=1.0 - model_seconds / step_seconds if step_seconds else None,
        plain_step_seconds=_median_of(cost.plain_step_seconds for cost in engine),
        draft_step_seconds=_median_of(cost.draft_step_seconds for cost in engine),
        others_cpu_fraction=_others_cpu(samples),
        generated_tokens=tokens,
        generations=len(samples),
        at_once=samples[0].at_once,
    )


def aggregate(samples: Sequence[Sample], rows: Sequence[str]) -> list[RowResult]:
    """The rows that have samples, in the order of `rows`."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.row].append(sample)
    return [aggregate_row(name, groups[name]) for name in rows if groups[name]]


def differing_questions(samples: Sequence[Sample], left: str, right: str) -> int | None:
    """Questions for which two rows gave different tokens in any repeat; None without both rows.

    With `left` equal to `right`: questions that one row answered differently in its repeats.
    """
    outputs: dict[str, dict[str, set[tuple[int, ...]]]] = {left: {}, right: {}}
    for sample in samples:
        if sample.row in outputs:
            seen = outputs[sample.row].setdefault(sample.question_id, set())
            seen.add(sample.generation.token_ids)
    if not outputs[left] or not outputs[right]:
        return None
    both = outputs[left].keys() & outputs[right].keys()
    return sum(len(outputs[left][name] | outputs[right][name]) > 1 for name in both)
