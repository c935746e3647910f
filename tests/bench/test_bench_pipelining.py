"""`slipstream bench pipelining` on real processes with the tiny model."""

from __future__ import annotations

import pytest

from slipstream.bench.machine import cores
from slipstream.bench.pipelining import measure_pipelining
from slipstream.bench.setups import Place
from slipstream.cli.bench_shards import numbers
from slipstream.core.errors import ConfigurationError


async def test_both_shards_work_for_every_sequence(tiny_model_dir, tmp_path) -> None:
    """Drafts of one and of two sequences come from a drafter in two pieces, and both say that they
    computed."""
    place = Place(tiny_model_dir, tmp_path, tuple(cores()))
    # On a busy machine half a second may be too short for anything, or shorter than a pass.
    for seconds in (0.5, 2.0, 8.0):
        found = await measure_pipelining(place, range(3, 40), (2,), (1, 2), seconds, lambda _: None)
        assert [(f.shards, f.sequences) for f in found] == [(2, 1), (2, 2)]
        assert [len(each.busy) for each in found] == [2, 2]
        busy = all(0 < share <= 1.05 for each in found for share in each.busy)
        if busy and all(each.rate > 0 for each in found):
            break
    assert busy
    assert all(each.rate > 0 for each in found)


@pytest.mark.parametrize("given", ["", "0", "two", "1,-1"])
def test_numbers_that_are_none(given) -> None:
    """A list that is empty, not of numbers, or below one is refused."""
    with pytest.raises(ConfigurationError, match="--sequences"):
        numbers("--sequences", given)
