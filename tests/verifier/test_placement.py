"""Placement: which layouts come into question, and which one a contest ends with."""

from __future__ import annotations

import pytest

from verifier_service.placement import Drafter, Placement, layouts

OWN = Drafter("here", frozenset({0, 1, 2}))
BESIDE = Drafter("here", frozenset({0, 1, 2}))


def names(wanted: str, drafter: Drafter | None) -> list[tuple]:
    found = layouts(wanted, OWN, drafter)
    return [(each.name, each.verifier_cores, each.drafter_cores, each.burst) for each in found]


def test_on_the_same_cores() -> None:
    """Sharing cores: half of them each, or all of them in turn, or a contest of the two."""
    apart = ("separate", (0, 1), (2,), False)
    turns = ("shared", (0, 1, 2), (0, 1, 2), True)
    assert names("separate", BESIDE) == [apart]
    assert names("shared", BESIDE) == [turns]
    assert names("auto", BESIDE) == [turns, apart]


@pytest.mark.parametrize(
    "drafter",
    [
        Drafter("there", frozenset({0, 1, 2})),
        Drafter("here", frozenset({3})),
        Drafter("here", frozenset()),
    ],
    ids=["other host", "other cores", "other device"],
)
def test_with_a_device_of_its_own(drafter) -> None:
    """A drafter that shares no core stays where it is, and so does the verifier."""
    assert names("auto", drafter) == [("separate", (), (), False)]
    assert names("shared", drafter) == [("shared", (), (), True)]


def test_alone() -> None:
    """Without a drafter the verifier has all its cores."""
    assert names("auto", None) == [("alone", (0, 1, 2), (), False)]


@pytest.mark.parametrize("better", ["separate", "shared"])
def test_the_faster_one_wins(better) -> None:
    """After a bounded trial the layout with more tokens per second stays, for each batch size."""
    moved: list[tuple[int, ...]] = []
    placement = Placement("auto", OWN, moved.append)
    placement.use(placement.pair(BESIDE))
    for step in range(200):
        seconds = 0.04 if placement.layout.name == better else 0.05
        placement.use(placement.cycled(1, 4, seconds))
        if step >= 60:
            assert placement.layout.name == better
    assert moved[-1] == ((0, 1) if better == "separate" else (0, 1, 2))
    # A batch of another size has a contest of its own, a batch of the old one a verdict.
    assert placement.cycled(8, 4, 0.05).name == "shared"
    assert placement.cycled(1, 4, 0.05).name == better


def test_a_hopeless_layout_is_not_tried_for_long() -> None:
    """Half as fast by the policy's own estimates: over thousands of steps under 2% of the time."""
    placement = Placement("auto", OWN, lambda cores: None)
    placement.use(placement.pair(BESIDE))
    spent = {"shared": 0.0, "separate": 0.0}
    for _ in range(6000):
        name = placement.layout.name
        seconds = 0.007 if name == "shared" else 0.014
        spent[name] += seconds
        placement.use(placement.cycled(1, 1, seconds, 1.0 / seconds))
    assert 0.0 < spent["separate"] < 0.02 * sum(spent.values())


def test_a_verdict_is_looked_at_again() -> None:
    """When what was faster becomes slower, the other one gets its chance in time."""
    placement = Placement("auto", OWN, lambda cores: None)
    placement.use(placement.pair(BESIDE))
    for _ in range(100):
        seconds = 0.04 if placement.layout.name == "shared" else 0.05
        placement.use(placement.cycled(1, 4, seconds))
    assert placement.layout.name == "shared"
    for _ in range(2300):
        seconds = 0.06 if placement.layout.name == "shared" else 0.05
        placement.use(placement.cycled(1, 4, seconds))
    assert placement.layout.name == "separate"


def test_the_drafter_goes() -> None:
    """A verifier whose drafter is gone gets its cores back, with no contest."""
    moved: list[tuple[int, ...]] = []
    placement = Placement("separate", OWN, moved.append)
    placement.use(placement.pair(BESIDE))
    placement.use(placement.pair(None))
    assert moved == [(0, 1), (0, 1, 2)]
    assert placement.cycled(1, 1, 0.1).name == "alone"
