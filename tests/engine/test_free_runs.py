"""FreeRuns: where new sequences begin, and where old ones go on."""

from __future__ import annotations

from slipstream.engine.free_runs import FreeRuns


def _with(*runs: range) -> FreeRuns:
    """Of blocks 1 to 40, these are free."""
    free = FreeRuns(1, 40)
    free.take(40)
    for run in runs:
        free.give(run)
    return free


def test_what_is_new_begins_in_the_middle_of_one_run() -> None:
    """In one piece where any run is long enough, with room to grow on both sides."""
    free = _with(range(1, 4), range(10, 17))
    assert free.take(3) == [12, 13, 14]
    assert len(free) == 7


def test_what_goes_on_does_so_in_place() -> None:
    """The blocks behind it come first, and it is cut off where those are another's."""
    free = _with(range(1, 4), range(10, 17))
    assert free.take(2, after=9) == [10, 11]
    assert free.take(6, after=11) == [12, 13, 14, 15, 16, 1]


def test_small_runs_are_used_up_first() -> None:
    """What must be scattered leaves long runs whole."""
    free = _with(range(1, 4), range(10, 17), range(30, 31))
    assert free.take(4, after=20) == [30, 1, 2, 3]
    assert free.take(7) == list(range(10, 17))


def test_what_is_given_back_joins_both_neighbours() -> None:
    """Whatever the order, what lies side by side is one run again."""
    free = _with(range(1, 4), range(7, 10))
    free.give([4, 5, 6])
    assert free.take(9) == list(range(1, 10))
