"""Placement: which layouts come into question, and which one a contest ends with."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from verifier_service.layouts import Drafter, layouts
from verifier_service.placement import Placement

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


class Service:
    """A verifier and its drafter, side by side or in turn, one sequence at a time.

    Attributes:
        seconds: of a step, by layout; `spent`, of all steps so far.
        tokens: of a step.
    """

    def __init__(self, tokens: Callable[[], int] = lambda: 4, **seconds: float) -> None:
        self.seconds, self.tokens = seconds, tokens
        self.spent = {"shared": 0.0, "separate": 0.0}
        self.placement = Placement("auto", OWN, lambda cores: None)
        self.placement.use(self.placement.pair(BESIDE))

    @property
    def now(self) -> str:
        return self.placement.layout.name

    def run(self, steps: int, *, promising: bool = True) -> None:
        for _ in range(steps):
            seconds = self.seconds[self.now]
            self.spent[self.now] += seconds
            promised = 4 / seconds if promising else 0.0
            self.placement.use(self.placement.cycled(1, self.tokens(), seconds, promised))


@pytest.mark.parametrize("promising", [True, False])
@pytest.mark.parametrize("better", ["separate", "shared"])
def test_the_faster_one_wins(better, promising) -> None:
    """After a bounded trial the layout with more tokens per second stays, for each batch size."""
    service = Service(shared=0.05, separate=0.05)
    service.seconds[better] = 0.04
    service.run(300, promising=promising)
    assert service.now == better
    assert not service.placement.on_trial
    service.run(1500, promising=promising)
    assert service.now == better
    # A batch of another size has a contest of its own, a batch of the old one a verdict.
    assert service.placement.cycled(8, 4, 0.05).name == "shared"
    assert service.placement.on_trial
    assert service.placement.cycled(1, 4, 0.05).name == better


@pytest.mark.parametrize("worse", ["separate", "shared"])
@pytest.mark.parametrize("share", [0.5, 0.76, 0.85, 0.95, 1.0])
def test_a_trial_costs_little_from_the_first_step_on(worse, share) -> None:
    """At no time have trials cost more than 5% of the time, the first stint of each apart."""
    service = Service(shared=0.02, separate=0.02)
    service.seconds[worse] = 0.02 / share
    service.run(16)
    before, most = sum(service.spent.values()), 0.05
    for steps in range(1, 1000):
        service.run(1)
        lost = sum(service.spent.values()) - before - steps * 0.02
        assert lost <= most * (steps * 0.02 + lost) + 1e-9, steps


def test_the_verdict_bears_uneven_text() -> None:
    """Steps of 1 to 7 tokens at random: who is 15% faster wins nine contests of ten."""
    right = 0
    for seed in range(100):
        rng = random.Random(seed)
        service = Service(lambda rng=rng: rng.randint(1, 7), shared=0.046, separate=0.04)
        while not service.placement.on_trial:
            service.run(1)
        while service.placement.on_trial:
            service.run(1)
        right += service.now == "separate"
    assert right >= 90


def test_no_promise_is_trusted_for_long() -> None:
    """The policy promises far too much of a layout twice as slow: it is left within 80 steps."""
    service = Service(shared=0.08, separate=0.04)
    for _ in range(80):
        name = service.now
        promised = 130.0 if name == "shared" else 100.0
        service.placement.use(service.placement.cycled(1, 4, service.seconds[name], promised))
    assert service.now == "separate"


def test_a_hopeless_layout_is_not_tried_for_long() -> None:
    """Half as fast by the policy's own estimates: over thousands of steps under 2% of the time."""
    service = Service(shared=0.007, separate=0.014)
    service.run(6000)
    assert 0.0 < service.spent["separate"] < 0.02 * sum(service.spent.values())


def test_a_verdict_is_looked_at_again() -> None:
    """When what was faster becomes slower, the other one gets its chance in time."""
    service = Service(shared=0.04, separate=0.05)
    service.run(300)
    assert service.now == "shared"
    service.seconds["shared"] = 0.06
    service.run(2300)
    assert service.now == "separate"


def test_the_drafter_goes() -> None:
    """A verifier whose drafter is gone gets its cores back, with no contest."""
    moved: list[tuple[int, ...]] = []
    placement = Placement("separate", OWN, moved.append)
    placement.use(placement.pair(BESIDE))
    placement.use(placement.pair(None))
    assert moved == [(0, 1), (0, 1, 2)]
    assert placement.cycled(1, 1, 0.1).name == "alone"
