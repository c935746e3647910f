"""From samples to rows: rates, medians, acceptance, and shares of the step."""

from __future__ import annotations

import pytest

from slipstream.bench.aggregate import aggregate, aggregate_row, differing_questions
from slipstream.bench.records import EngineCost, Speculation


def test_rate_is_total_tokens_over_total_seconds_of_a_repeat(sample):
    """A slow question weighs by its time, and the median over the repeats is taken."""
    samples = [
        sample(repeat=repeat, question=name, tokens=tokens, seconds=seconds * factor)
        for repeat, factor in enumerate([1.0, 2.0, 4.0])
        for name, tokens, seconds in [("1", 100, 1.0), ("2", 20, 2.0)]
    ]
    row = aggregate_row("plain-1core", samples)
    assert row.tokens_per_second == pytest.approx(20.0)
    assert row.tokens_per_second_max == pytest.approx(40.0)
    assert row.tokens_per_second_min == pytest.approx(10.0)
    assert row.ttft_seconds == pytest.approx(0.3)
    assert (row.generated_tokens, row.generations) == (360, 6)


def test_tasks_are_apart_and_absent_ones_left_out(sample):
    """Each task has the rate of its own questions."""
    row = aggregate_row("x", [sample(tokens=30), sample(question="2", task="rag", seconds=2.0)])
    assert row.tokens_per_second_by_task == {"qa": 30.0, "rag": 5.0}


def test_acceptance_of_a_speculative_row(sample):
    """Rate is accepted/drafted, mean length counts the verifier's own token."""
    counts = Speculation(steps=10, spec_steps=8, drafted=32, accepted=24)
    row = aggregate_row("speculative", [sample(tokens=34, speculation=counts)] * 2)
    assert row.acceptance_rate == pytest.approx(0.75)
    assert row.mean_acceptance_length == pytest.approx(4.0)
    assert row.tokens_per_step == pytest.approx(3.4)
    assert row.token_acceptance is not None
    assert 0.75 < row.token_acceptance < 1.0


def test_plain_rows_have_no_acceptance(sample):
    """Without drafts acceptance is unknown, not zero."""
    row = aggregate_row("x", [sample(speculation=Speculation(steps=10))])
    assert (row.acceptance_rate, row.mean_acceptance_length, row.token_acceptance) == (None,) * 3
    assert row.tokens_per_step == 1.0
    assert aggregate_row("x", [sample()]).tokens_per_step is None


def test_share_outside_the_model_is_over_all_steps(sample):
    """Seconds are summed before the share is taken; step times are means and medians."""
    costs = [EngineCost(10, 1.0, 0.9, 0.1, 0.0), EngineCost(30, 3.0, 2.9, 0.3, 0.05)]
    row = aggregate_row("x", [sample(engine=cost) for cost in costs])
    assert row.outside_model_fraction == pytest.approx(0.05)
    assert row.step_seconds == pytest.approx(0.1)
    assert row.model_seconds == pytest.approx(0.095)
    assert row.plain_step_seconds == pytest.approx(0.2)
    assert row.draft_step_seconds == pytest.approx(0.05)


def test_rows_without_an_engine_of_ours_have_no_step_times(sample):
    """transformers reports no steps: null, not zero."""
    row = aggregate_row("transformers", [sample()])
    assert (row.step_seconds, row.outside_model_fraction, row.plain_step_seconds) == (None,) * 3


def test_processor_time_of_idle_processes(sample):
    """It is a share of the wall time of the samples that know it."""
    row = aggregate_row("x", [sample(others=0.2), sample(others=0.0), sample(seconds=50.0)])
    assert row.others_cpu_fraction == pytest.approx(0.1)


def test_rows_come_in_the_order_asked_for(sample):
    """Rows without a sample are left out."""
    samples = [sample("b"), sample("a"), sample("b")]
    assert [row.name for row in aggregate(samples, ["a", "b", "c"])] == ["a", "b"]


def test_differing_questions_counts_questions_not_repeats(sample):
    """One differing repeat makes a question differ, once."""
    samples = [sample(row, repeat=r) for row in ("a", "b") for r in range(3)]
    samples += [sample(row, question="2", repeat=r) for row in ("a", "b") for r in range(2)]
    assert differing_questions(samples, "a", "b") == 0
    samples += [sample("b", question="2", repeat=2, first_id=5)]
    assert differing_questions(samples, "a", "b") == 1
    assert differing_questions(samples, "b", "b") == 1
    assert differing_questions(samples, "a", "a") == 0
    assert differing_questions(samples, "a", "c") is None


def test_a_shorter_output_differs(sample):
    """An output that is a prefix of the other is not the same."""
    samples = [sample("a", tokens=10), sample("b", tokens=9)]
    assert differing_questions(samples, "a", "b") == 1
