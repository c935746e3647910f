"""Open-loop arrivals: a Poisson process that a seed repeats."""

from __future__ import annotations

import itertools

import pytest
from scipy import stats

from slipstream.bench.load.arrivals import poisson, until
from slipstream.core.errors import ConfigurationError


@pytest.mark.parametrize("rate", [0.2, 3.0, 50.0])
def test_gaps_are_exponential_with_the_rate(rate):
    """2,000 gaps have the mean and the distribution of an exponential of that rate."""
    times = list(itertools.islice(poisson(rate, 5), 2000))
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / rate, rel=0.08)
    assert stats.kstest(gaps, "expon", args=(0, 1 / rate)).pvalue > 0.01


def test_counts_in_windows_vary_as_they_do_in_a_poisson_process():
    """The number of arrivals in a second has a variance equal to its mean, unlike a metronome's."""
    times = until(1000.0, poisson(4.0, 1))
    counts = [0] * 1000
    for time in times:
        counts[int(time)] += 1
    mean = sum(counts) / 1000
    variance = sum((count - mean) ** 2 for count in counts) / 999
    assert variance / mean == pytest.approx(1.0, abs=0.15)


def test_a_seed_repeats_them():
    """The same seed gives the same arrivals, another one others."""
    first = until(60.0, poisson(2.0, 9))
    assert first == until(60.0, poisson(2.0, 9))
    assert first != until(60.0, poisson(2.0, 10))
    assert first == sorted(first)
    assert first[-1] < 60.0


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_positive(rate):
    """No rate, or none that can be waited for, is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match="above 0"):
        next(poisson(rate, 0))
