"""Keyed noise: a pure function of seed, position and token, and always a finite number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.core import noise
from slipstream.core.noise import MAX_GUMBEL, MIN_GUMBEL, gumbel, uniform

SEEDS = st.integers(0, 2**63 - 1)
POSITIONS = st.integers(0, 2**31)


@given(SEEDS, POSITIONS, st.lists(st.integers(0, 2**20), min_size=1, max_size=70))
def test_any_subset_in_any_order_gets_the_same_values(
    seed: int, position: int, tokens: list[int]
) -> None:
    """A token's noise is bitwise the same alone, in a list, and in a strided view of one."""
    ids = np.array(tokens)
    together = gumbel(seed, position, ids)
    alone = [gumbel(seed, position, ids[i : i + 1])[0] for i in range(len(tokens))]
    strided = gumbel(seed, position, np.repeat(ids, 3)[::3])
    assert together.tolist() == alone == strided.tolist()
    assert gumbel(seed, position, ids[::-1]).tolist() == alone[::-1]


@given(SEEDS, POSITIONS)
def test_another_key_gives_other_noise(seed: int, position: int) -> None:
    """Seed, position and token id each change the value."""
    ids = np.arange(8)
    values = uniform(seed, position, ids)
    assert len(set(values.tolist())) == 8
    assert not np.isin(uniform(seed, position + 1, ids), values).any()
    assert not np.isin(uniform((seed + 1) % 2**63, position, ids), values).any()


@pytest.mark.parametrize("bits", [0, 1, 2**63, 2**64 - 2**11, 2**64 - 1])
def test_extreme_bits_stay_inside_the_stated_range(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bit pattern makes a uniform number 0 or 1, or noise beyond what the floor relies on."""
    monkeypatch.setattr(noise, "_bits", lambda *_: np.array([bits], np.uint64))
    value = uniform(0, 0, np.array([0]))[0]
    assert 0.0 < value < 1.0
    assert MIN_GUMBEL < gumbel(0, 0, np.array([0]))[0] < MAX_GUMBEL


def test_values_are_fixed_for_good() -> None:
    """The noise of one key is what it was on the day it was written down, on any machine."""
    expected = [0.3779585203408219, 0.6114263576495117, 0.19991730145576703]
    assert uniform(7, 11, np.array([0, 1, 49151])).tolist() == expected
