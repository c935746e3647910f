"""What the length policy knows of steps, acceptance and arrivals."""

from __future__ import annotations

import pytest

from verifier_service.estimates import Acceptance, Arrival, StepCost

PROBE = {1: 0.010, 4: 0.011, 8: 0.014}


def test_a_row_count_that_is_no_longer_seen_ages_with_the_others() -> None:
    """Once all steps take twice as long, a plain step does, though none was seen."""
    cost = StepCost(PROBE)
    for _ in range(20):
        cost.observe(1, 0.010)
    for _ in range(60):
        cost.observe(8, 0.028)
    assert cost(8) == pytest.approx(0.028, rel=0.05)
    assert cost(1) == pytest.approx(0.020, rel=0.25)


def test_a_slow_minute_is_forgotten_by_all_row_counts() -> None:
    """Steps of one row that were slow at the start do not stay slow while four rows are fast."""
    cost = StepCost(PROBE)
    for _ in range(10):
        cost.observe(1, 0.030)
    for _ in range(60):
        cost.observe(4, 0.011)
    assert cost(1) == pytest.approx(0.010, rel=0.35)


def test_a_wait_is_the_way_and_so_much_for_each_draft() -> None:
    """From runs of two lengths the fit tells the way from the drafts, whatever the drafter says."""
    for said in (0.0001, 0.005, 0.5):
        arrival = Arrival()
        arrival.said(said)
        for _ in range(20):
            arrival.waited(0.003 + 2 * 0.005, 2)
            arrival.waited(0.003 + 6 * 0.005, 6)
        assert arrival.waiting == pytest.approx(0.005, rel=0.15)
        assert arrival.latency == pytest.approx(0.003, abs=0.0035)
        assert arrival.wait(4) == pytest.approx(0.023, rel=0.05)


def test_runs_of_one_length_lean_on_what_the_drafter_says() -> None:
    """Where only the sum can be measured, the drafter's word divides it: longer runs look cheap."""
    arrival = Arrival()
    arrival.said(0.005)
    for _ in range(20):
        arrival.waited(0.009, 1)
    assert arrival.wait(1) == pytest.approx(0.009, rel=0.02)
    assert arrival.wait(4) == pytest.approx(0.024, rel=0.1)


def test_no_drafts_within_a_wait_are_a_measurement() -> None:
    """A drafter that lets us wait for nothing becomes slow in our eyes."""
    arrival = Arrival()
    arrival.said(0.005)
    for _ in range(20):
        arrival.waited(0.050, 0)
    assert arrival.wait(1) > 0.04
    assert arrival.wait(0) == 0.0


def test_positions_never_tried_are_like_those_before_them() -> None:
    """Nine of ten first drafts right promise 0.9 at the second, not what is assumed at first."""
    acceptance = Acceptance()
    for i in range(60):
        acceptance.record(1, 0 if i % 10 == 0 else 1)
    rates = acceptance.rates()
    assert rates[0] > 0.85
    assert rates[1:] == pytest.approx([rates[0]] * 7)
    assert Acceptance(acceptance).rates()[1:] == pytest.approx([rates[0]] * 7)
