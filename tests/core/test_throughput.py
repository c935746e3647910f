"""Tokens per second from measured parts."""

from __future__ import annotations

import pytest

from slipstream.core.ideal import pearl_speedup
from slipstream.core.throughput import RunTally, best_throughput


def test_runs_are_counted_by_position() -> None:
    """A run is drafted up to its first wrong token; what came behind was never compared."""
    tally = RunTally.of_run(2, 5) + RunTally.of_run(0, 4) + RunTally.of_run(3, 3)
    assert tally == RunTally((3, 2, 2), (2, 2, 1))
    assert tally.by_position == (2 / 3, 1.0, 0.5)
    assert tally.rate == 5 / 7
    assert tally.mean_accepted(3) == pytest.approx(2 / 3 + 2 / 3 + 1 / 3)
    assert RunTally().rate == RunTally().mean_accepted(4) == 0.0


@pytest.mark.parametrize(("acceptance", "ratio"), [(0.8, 2.0), (0.9, 4.0), (0.5, 3.0)])
def test_separate_is_pearls_formula_at_its_best_window(acceptance, ratio) -> None:
    """With equal acceptance everywhere and a flat verify step it is the closed form."""
    many = 10**6
    drafted = [many]
    for _ in range(15):
        drafted.append(int(drafted[-1] * acceptance))
    accepted = [int(d * acceptance) for d in drafted]
    tally = RunTally(tuple(drafted), tuple(accepted))
    found = best_throughput(tally, 0.02 / ratio, lambda _: 0.02)
    best = max(pearl_speedup(acceptance, ratio, g) for g in range(1, 17))
    assert found.tokens_per_second * 0.02 == pytest.approx(best, rel=1e-3)
    assert found.acceptance == pytest.approx(acceptance, abs=1e-3)


def test_taking_turns_pays_for_both() -> None:
    """On a shared device a round is the sum of both, and verify steps that grow shorten it."""
    tally = RunTally((100, 90, 81), (90, 81, 73))
    flat = best_throughput(tally, 0.005, lambda _: 0.02, placement="shared", max_window=3)
    accepted = tally.mean_accepted(3)
    assert flat.tokens_per_second == pytest.approx((1 + accepted) / (3 * 0.005 + 0.02))
    steep = best_throughput(tally, 0.005, lambda rows: 0.02 * rows, placement="shared")
    assert steep.window == 1
