"""Placement: which layouts come into question, and which one a contest ends with."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from verifier_service.layouts import Drafter, layouts
from verifier_service.placement import Cycle, Placement

OWN = Drafter("here", frozenset({0, 1, 2}))
BESIDE = Drafter("here", frozenset({0, 1, 2}))


def names(wanted: str, drafter: Drafter | None) -> list[tuple]:
    found = layouts(wanted, OWN, drafter)
    return [
        (each.name, each.verifier_cores, each.drafter_cores, each.burst and each.drafts)
        for each in found
    ]


def test_on_the_same_cores() -> None:
    """Sharing cores: half of them each, all of them in turn, or a contest of the two with none."""
    apart = ("separate", (0, 1), (2,), False)
    turns = ("shared", (0, 1, 2), (0, 1, 2), True)
    assert names("separate", BESIDE) == [apart]
    assert names("shared", BESIDE) == [turns]
    plain = ("plain", (0, 1, 2), (0, 1, 2), False)
    assert names("auto", BESIDE) == [apart, turns, plain]


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
        seconds: of a step, by layout; without drafts as in the slower of the others, if not said.
        spent: seconds of all steps so far.
        tokens: of a step.
    """

    def __init__(self, tokens: Callable[[], int] = lambda: 4, **seconds: float) -> None:
        self.seconds, self.tokens = {"plain": max(seconds.values())} | seconds, tokens
        self.spent = dict.fromkeys(self.seconds, 0.0)
        self.placement = Placement("auto", OWN, lambda cores: None)
        self.placement.use(self.placement.pair(BESIDE))

    @property
    def now(self) -> str:
        return self.placement.layout.name

    def cycle(self, sequences: int, seconds: float) -> str:
        """The layout after a step of so many sequences."""
        return self.placement.cycled(Cycle(sequences, self.tokens(), seconds)).name

    def run(
        self, steps: int, *, promising: bool = True, prompts: int = 0, drafts: bool = True
    ) -> None:
        for _ in range(steps):
            seconds = self.seconds[self.now]
            self.spent[self.now] += seconds
            promised = 4 / seconds if promising else 0.0
            cycle = Cycle(1, self.tokens(), seconds, promised, prompts, drafts)
            self.placement.use(self.placement.cycled(cycle))


@pytest.mark.parametrize("promising", [True, False])
@pytest.mark.parametrize("better", ["separate", "shared", "plain"])
def test_the_faster_one_wins(better, promising) -> None:
    """After a bounded trial the layout with more tokens per second stays, for each batch size."""
    service = Service(shared=0.05, separate=0.05)
    service.seconds[better] = 0.04
    service.run(900, promising=promising)
    assert service.now == better
    assert not service.placement.on_trial
    service.run(600, promising=promising)
    assert service.now == better
    # A batch of another size has a contest of its own, a batch of the old one a verdict; where no
    # drafts are best, they are so for larger ones.
    expected = "plain" if better == "plain" else "separate"
    assert service.cycle(8, 0.05) == expected
    assert service.placement.on_trial == (better != "plain")
    assert service.cycle(1, 0.05) == better


def test_prompts_take_all_cores() -> None:
    """Where most steps carry prompts there are no drafts, until that is over; single prompts move
    nobody, one that is computed alone has all cores, and none of their steps count."""
    service = Service(shared=0.05, separate=0.04)
    service.run(900)
    for _ in range(10):
        service.run(3, prompts=1)
        assert service.now == "separate"
        service.run(7)
    assert service.cycle(0, 9.0) == service.now == "separate"
    assert service.placement.for_prompts().name == "shared"
    service.run(16, prompts=1)
    assert service.now == "plain"
    service.run(300, prompts=1)
    assert service.now == "plain"
    service.run(20)
    assert service.now == "separate"


@pytest.mark.parametrize("worse", ["separate", "shared"])
@pytest.mark.parametrize("share", [0.5, 0.76, 0.85, 0.95, 1.0])
def test_a_trial_costs_little_from_the_first_step_on(worse, share) -> None:
    """At no time have trials cost more than 5% of the time, the first stint of each apart."""
    service = Service(shared=0.02, separate=0.02)
    service.seconds[worse] = 0.02 / share
    service.run(48)
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
    """The policy promises far too much of a layout twice as slow: it is left within 160 steps."""
    service = Service(shared=0.08, separate=0.04)
    for _ in range(160):
        name = service.now
        promised = {"shared": 130.0, "separate": 100.0, "plain": 50.0}[name]
        cycle = Cycle(1, 4, service.seconds[name], promised)
        service.placement.use(service.placement.cycled(cycle))
    assert service.now == "separate"


def test_a_hopeless_layout_is_not_tried_for_long() -> None:
    """Less than half as fast by the policy's own estimates: over thousands of steps it gets less
    than 3% of the time."""
    service = Service(shared=0.007, separate=0.015)
    service.run(6000)
    assert 0.0 < service.spent["separate"] < 0.03 * sum(service.spent.values())


def test_a_verdict_is_looked_at_again() -> None:
    """When what was faster becomes slower, the other one gets its chance in time."""
    service = Service(shared=0.04, separate=0.05, plain=0.08)
    service.run(900)
    assert service.now == "shared"
    service.seconds["shared"] = 0.06
    service.run(2300)
    assert service.now == "separate"


def test_several_never_take_turns_with_their_drafter() -> None:
    """All would wait for the slowest: from two sequences on, prompts included, it is no choice."""
    service = Service(shared=0.01, separate=0.05, plain=0.06)
    service.run(900)
    assert service.now == "shared"
    service.placement.use(service.placement.cycled(Cycle(1, 4, 0.01, prompts=1)))
    assert service.now == "separate"
    for _ in range(900):
        service.placement.use(service.placement.cycled(Cycle(2, 4, service.seconds[service.now])))
        assert service.now != "shared"


def test_a_winner_without_use_for_drafts() -> None:
    """Where the length policy wants none, the layout for that takes over, for as long as a verdict
    holds; a few steps without are no reason."""
    service = Service(shared=0.04, separate=0.05)
    service.run(900)
    for _ in range(5):
        service.run(20, drafts=False)
        service.run(1)
    assert service.now == "shared"
    service.run(40, drafts=False)
    assert service.now == "plain"


def test_the_drafter_goes() -> None:
    """A verifier whose drafter is gone gets its cores back, with no contest."""
    moved: list[tuple[int, ...]] = []
    placement = Placement("separate", OWN, moved.append)
    placement.use(placement.pair(BESIDE))
    placement.use(placement.pair(None))
    assert moved == [(0, 1), (0, 1, 2)]
    assert placement.cycled(Cycle(1, 1, 0.1)).name == "alone"
