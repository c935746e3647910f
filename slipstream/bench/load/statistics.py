"""From outcomes to figures: latencies by exact quantiles, throughput, goodput at an SLO."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from slipstream.bench.load.outcomes import ANSWERED, FAULTS, Outcome, Verdict

QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Slo:
    """What a user is content with, in seconds. An answer is good if it is right and keeps both."""

    ttft: float = 2.0
    tpot: float = 0.1

    def kept(self, outcome: Outcome) -> bool:
        if outcome.verdict not in ANSWERED or outcome.ttft is None:
            return False
        return outcome.ttft <= self.ttft and (outcome.tpot or 0.0) <= self.tpot


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one kind of time, in seconds; `count` says of how many."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one load.

    Attributes:
        seconds: from its start to the end of its last answer.
        verdicts: how many outcomes of each.
        tokens_per_second, requests_per_second: of answers that were complete.
        goodput_per_second, goodput_share: of answers within the SLO; the share is of all
            requests that were not left by their clients.
        ttft, tpot, gap, e2e: None where nothing was answered.
        cached_share: part of the prompts' tokens whose keys and values were there already.
    """

    seconds: float
    requests: int
    verdicts: Mapping[str, int]
    tokens: int
    tokens_per_second: float
    requests_per_second: float
    goodput_per_second: float
    goodput_share: float
    ttft: Latency | None
    tpot: Latency | None
    gap: Latency | None
    e2e: Latency | None
    cached_share: float

    @property
    def faults(self) -> int:
        return sum(self.verdicts.get(verdict, 0) for verdict in FAULTS)


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed (nearest rank).

    Args:
        values: at least one.
        share: in (0, 1].
    """
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


def latency(values: Sequence[float]) -> Latency | None:
    """None of no values."""
    if not values:
        return None
    p50, p95, p99 = (quantile(values, share) for share in QUANTILES)
    return Latency(len(values), sum(values) / len(values), p50, p95, p99, max(values))


def figures(outcomes: Sequence[Outcome], slo: Slo, seconds: float | None = None) -> Figures:
    """Sums up a load.

    Args:
        seconds: how long it took; None: until its last answer ended.
    """
    answered = [each for each in outcomes if each.verdict in ANSWERED]
    lasted = seconds or max((each.due + each.e2e for each in outcomes), default=0.0)
    per = 1.0 / lasted if lasted > 0 else 0.0
    stayed = sum(each.verdict is not Verdict.CANCELLED for each in outcomes)
    good = sum(slo.kept(each) for each in outcomes)
    tokens = sum(each.tokens for each in answered)
    prompt = sum(each.prompt_tokens for each in answered)
    return Figures(
        seconds=lasted,
        requests=len(outcomes),
        verdicts=dict(Counter(str(each.verdict) for each in outcomes)),
        tokens=tokens,
        tokens_per_second=tokens * per,
        requests_per_second=len(answered) * per,
        goodput_per_second=good * per,
        goodput_share=good / stayed if stayed else 0.0,
        ttft=latency([each.ttft for each in answered if each.ttft is not None]),
        tpot=latency([tpot for each in answered if (tpot := each.tpot) is not None]),
        gap=latency([gap for each in answered for gap in each.gaps]),
        e2e=latency([each.e2e for each in answered]),
        cached_share=sum(each.cached_tokens for each in answered) / prompt if prompt else 0.0,
    )
