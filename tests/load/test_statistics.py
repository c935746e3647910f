"""Figures of a load: exact quantiles, TPOT, throughput, goodput."""

from __future__ import annotations

import random

import pytest

from slipstream.bench.load.outcomes import Outcome, Verdict
from slipstream.bench.load.statistics import Slo, figures, latency, quantile


def made(verdict=Verdict.RIGHT, due=0.0, e2e=1.0, ttft=0.5, tokens=6, gaps=(0.1,), **more):
    fields = {"prompt_tokens": 10, "cached_tokens": 0} | more
    return Outcome("n", "qa", verdict, due, e2e, ttft, gaps, tokens, **fields)


@pytest.mark.parametrize("share", [0.001, 0.25, 0.5, 0.95, 0.99, 1.0])
def test_quantiles_are_values_that_occurred(share):
    """The quantile is the least value that at least the share does not exceed, by definition."""
    draw = random.Random(3)
    for count in (1, 2, 3, 20, 101):
        values = [draw.choice((draw.random(), 0.5)) for _ in range(count)]
        found = quantile(values, share)
        assert found in values
        assert sum(value <= found for value in values) >= share * count
        assert sum(value < found for value in values) < share * count


def test_time_per_output_token_leaves_the_first_out():
    """TPOT is (E2E - TTFT) / (n - 1), and there is none of fewer than two tokens."""
    assert made(e2e=2.0, ttft=0.5, tokens=4).tpot == pytest.approx(0.5)
    assert made(tokens=1).tpot is None
    assert made(ttft=None).tpot is None


def test_throughput_counts_complete_answers_until_the_last_has_ended():
    """Tokens of faults, refusals and clients that left count for nothing; their time does."""
    outcomes = [
        made(due=0.0, e2e=2.0, tokens=10),
        made(due=1.0, e2e=3.0, tokens=6, cached_tokens=5),
        made(Verdict.WRONG, due=0.0, e2e=8.0, tokens=100),
        made(Verdict.CANCELLED, tokens=50),
        made(Verdict.REFUSED, tokens=0, ttft=None, e2e=0.01),
    ]
    found = figures(outcomes, Slo())
    assert found.seconds == 8.0
    assert found.tokens_per_second == pytest.approx(16 / 8)
    assert found.requests_per_second == pytest.approx(2 / 8)
    assert found.faults == 1
    assert found.verdicts == {"right": 2, "wrong": 1, "cancelled": 1, "refused": 1}
    assert found.cached_share == pytest.approx(5 / 20)
    assert found.e2e is not None
    assert (found.e2e.count, found.e2e.most) == (2, 3.0)


def test_goodput_needs_both_limits_and_a_right_answer():
    """An answer too late, too slow, or wrong is no good; clients that left are not counted."""
    outcomes = [
        made(ttft=1.0, e2e=1.5, tokens=6),  # 0.1 s a token: just good
        made(ttft=1.01, e2e=1.2),
        made(ttft=0.1, e2e=1.1, tokens=6),  # 0.2 s a token
        made(Verdict.WRONG, ttft=0.1, e2e=0.2),
        made(Verdict.CANCELLED, ttft=0.1, e2e=0.2),
    ]
    found = figures(outcomes, Slo(ttft=1.0, tpot=0.1), seconds=2.0)
    assert found.goodput_per_second == pytest.approx(0.5)
    assert found.goodput_share == pytest.approx(1 / 4)


def test_nothing_answered_has_no_latency():
    """A load without answers has figures, and says None where there is nothing to measure."""
    assert latency([]) is None
    found = figures([], Slo())
    assert (found.requests, found.tokens_per_second, found.goodput_share) == (0, 0.0, 0.0)
    assert found.ttft is None
