"""Rows go to the drafts that raise the expected tokens per second, and to no others."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.goodput import share_rows

FLAT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]


@pytest.mark.parametrize(
    ("chances", "cost", "most_rows", "expected"),
    [
        ([()], FLAT, 8, [0]),
        ([(0.9, 0.8, 0.7)], FLAT, 8, [3]),
        ([(0.9, 0.8, 0.7)], FLAT, 2, [1]),
        ([(0.3, 0.1, 0.0)], FLAT, 8, [1]),
        ([(0.05, 0.0, 0.0)], FLAT, 8, [0]),
        # The first two rows cost more than they bring, the third one is nearly free.
        ([(0.5, 0.5, 0.5)], [1.0, 1.6, 2.1, 2.1], 8, [3]),
        # Two sequences: the rows go to the likelier drafts, in order within each.
        ([(0.9, 0.8), (0.5, 0.01)], [1.0, 1.2, 1.4, 1.6, 1.8, 2.0], 6, [2, 1]),
        ([(0.9,), (0.9,)], [1.0, 1.0], 2, [0, 0]),
    ],
)
def test_as_many_as_pay(chances, cost, most_rows, expected) -> None:
    """The split is the one with the most expected tokens a second; none where it is none."""
    assert share_rows(chances, lambda rows: cost[rows - 1], most_rows) == expected


@settings(deadline=None, max_examples=200, derandomize=True)
@given(
    rates=st.lists(st.lists(st.floats(0.01, 0.99), max_size=3), min_size=1, max_size=3),
    steps=st.lists(st.floats(0.001, 1.0), min_size=13, max_size=13),
    most_rows=st.integers(1, 12),
)
def test_no_other_split_is_better(rates, steps, most_rows) -> None:
    """Against all possible splits, at any cost that grows with the rows."""
    chances = [list(itertools.accumulate(run, lambda a, b: a * b)) for run in rates]
    cost = list(itertools.accumulate(steps))

    def goodput(lengths) -> float:
        expected = len(chances) + sum(sum(c[:n]) for c, n in zip(chances, lengths, strict=True))
        return expected / cost[len(chances) + sum(lengths)]

    best = max(
        goodput(lengths)
        for lengths in itertools.product(*(range(len(run) + 1) for run in chances))
        if sum(lengths) <= max(0, most_rows - len(chances))
    )
    assert goodput(share_rows(chances, cost.__getitem__, most_rows)) == pytest.approx(best)
