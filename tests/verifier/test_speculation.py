"""The length policy in simulated time, against the best that a fixed choice reaches."""

from __future__ import annotations

import pytest

from slipstream.core.draft import Commit
from tests.verifier.world import Machine, World
from verifier_service.policy import Target, best_lengths
from verifier_service.probes import Probes


def _always(rate: float):
    return lambda length: rate


def _flat(rows: int) -> float:
    """A small CPU: free up to four rows, then by the row."""
    return 0.020 if rows <= 4 else 0.020 + 0.0012 * (rows - 4)


def _wide(rows: int) -> float:
    """A GPU: nearly flat."""
    return 0.020 + 0.0001 * rows


def _steep(rows: int) -> float:
    """Bound by arithmetic from the first row on."""
    return 0.010 + 0.010 * rows


CPU = {"step": _flat, "alone": 0.0085, "beside": 0.0115, "slowdown": 1.2}
TURNS = {"step": lambda rows: 0.016 + 0.0006 * rows, "alone": 0.006, "beside": 1e9}
MACHINES = {
    "cpu, good drafts": ("separate", Machine(**CPU, accepted=_always(0.97))),
    "cpu, fair drafts": ("separate", Machine(**CPU, accepted=_always(0.8))),
    "cpu, half wrong": ("separate", Machine(**CPU, accepted=_always(0.5))),
    "gpu, fast drafter": ("separate", Machine(_wide, 0.005, 0.005, _always(0.9))),
    "gpu, faster and worse": ("separate", Machine(_wide, 0.0025, 0.0025, _always(0.6))),
    "in turn, good drafts": ("shared", Machine(**TURNS, accepted=_always(0.97))),
    "in turn, fair drafts": ("shared", Machine(**TURNS, accepted=_always(0.7))),
    "in turn, bad drafts": ("shared", Machine(**TURNS, accepted=_always(0.2))),
    "steep": ("separate", Machine(_steep, 0.005, 0.005, _always(0.9))),
}


class Fixed(World):
    """The same world with a run length that somebody chose."""

    def __init__(self, machine: Machine, placement: str, length: int) -> None:
        super().__init__(machine, placement=placement)
        lengths = self.speculation._lengths

        def choose(sequences, drafting) -> bool:
            lengths.target = Target((length,) * len(drafting), 1.0)
            for generation in drafting:
                generation.wanted = length
            return True

        lengths.choose = choose


@pytest.mark.parametrize("name", MACHINES)
def test_comes_close_to_the_best_fixed_choice(name) -> None:
    """With no setting at all: at least 0.9 of what the best run length from 0 to 10 reaches."""
    placement, machine = MACHINES[name]
    world = World(machine, placement=placement)
    world.run(150)
    reached = world.run(800)
    best = max(Fixed(machine, placement, length).run(800) for length in range(11))
    assert reached >= 0.9 * best


@pytest.mark.parametrize("placement", ["separate", "shared"])
@pytest.mark.parametrize(
    ("accepted", "alone"), [(0.0, 0.0085), (0.0, 0.0001), (0.95, 0.2), (0.1, 0.02)]
)
def test_never_slower_than_off(placement, accepted, alone) -> None:
    """Random, flooding and hopelessly slow drafters cost under 3% from the first token on."""
    machine = Machine(_flat, alone, alone, _always(accepted), slowdown=1.1)
    world = World(machine, placement=placement)
    assert world.run(1000) >= 0.97 / machine.step(1)


@pytest.mark.parametrize("accepted", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("placement", ["separate", "shared"])
def test_a_draft_nearly_as_dear_as_a_step(placement, accepted) -> None:
    """A step that takes 1.2 drafts, as of a target at 8 bits: 500 steps cost under 3%."""
    drafts = (0.010, 0.010) if placement == "separate" else (0.010, 1e9)
    chance = _always(accepted)
    machine = Machine(lambda rows: 0.011 + 0.001 * rows, *drafts, chance, slowdown=1.2)
    world, steps = World(machine, placement=placement), 500
    started, before = world.now, world.generated
    while len(world.steps) < steps:
        world.run(1)
    rate = (world.generated - before) / (world.now - started)
    assert rate >= 0.97 / machine.step(1)


@pytest.mark.parametrize("context", [0.01, 0.04, 0.1, 0.5, 5.0])
def test_first_drafts_are_waited_for_where_two_take_turns(context) -> None:
    """On the same cores a drafter at its context makes steps ten times as long: an answer of 200
    tokens never takes much longer than without one, and less where the context is soon there."""
    machine = Machine(
        lambda rows: 0.006 + 0.0005 * rows, 0.002, 0.04, _always(0.95), slowdown=10.0,
        context=context,
    )  # fmt: skip
    rate, plain = World(machine, placement="shared").run(200), 1.0 / machine.step(1)
    assert rate >= (1.4 if context < 0.1 else 0.9) * plain


def test_follows_the_text() -> None:
    """Easy text, hard text, easy text: within 60 to 80 steps of a change it does what is best."""
    for placement, how in (("separate", CPU), ("shared", TURNS)):
        chance = [0.97]
        machine = Machine(**how, accepted=lambda _, chance=chance: chance[0])
        world = World(machine, placement=placement)
        easy = (world.run(150), world.run(300))[1]
        assert easy > 1.4 / machine.step(1)
        chance[0] = 0.0
        world.steps.clear()
        world.run(60)
        assert sum(drafts for drafts, _ in world.steps[-10:]) <= 10
        chance[0] = 0.97
        world.steps.clear()
        while len(world.steps) < 80:
            world.run(1)
        assert sum(tokens for _, tokens in world.steps[-10:]) >= 20, placement


@pytest.mark.parametrize("placement", ["separate", "shared"])
def test_lengths_are_by_sequence(placement) -> None:
    """Of four sequences one is easy: it alone is drafted for; within 60 steps of a change, others.

    The batch is faster than without drafts by what the easy one gains.
    """
    easy = [1]
    chances = [lambda _, n=n: 0.97 if n in easy else 0.0 for n in range(1, 5)]
    alone, beside = (0.005, 0.005) if placement == "separate" else (0.002, 1e9)
    machine = Machine(_wide, alone, beside, _always(0.0))
    world = World(machine, placement=placement, accepted=chances)
    world.run(1000)
    plain = 4 / machine.step(4)
    lengths = {n: each.wanted for n, each in world.generations.items()}
    assert lengths[1] >= 2
    assert max(lengths[n] for n in (2, 3, 4)) <= 1
    easy[:] = [2, 3, 4]
    world.steps.clear()
    while len(world.steps) < 80:
        world.run(1)
    assert world.run(500) > 1.15 * plain
    lengths = {n: each.wanted for n, each in world.generations.items()}
    assert min(lengths[n] for n in (2, 3, 4)) >= 2 > lengths[1]
    easy.clear()
    world.run(400)
    assert world.run(1000) >= 0.97 * plain


def test_off_leaves_the_drafter_idle() -> None:
    """Where drafts are worthless the drafter is told to stop: it works in under a tenth of time."""
    world = World(Machine(**CPU, accepted=_always(0.0)))
    world.run(300)
    started, busy = world.now, world.drafter_busy
    world.run(1000)
    assert world.drafter_busy - busy < 0.1 * (world.now - started)


def test_a_fixed_length_is_kept() -> None:
    """With a length of 2 no step has more drafts, and nobody waits for any."""
    world = World(Machine(**CPU, accepted=_always(0.97)), length=2)
    world.run(300)
    assert max(drafts for drafts, _ in world.steps) == 2
    assert min(drafts for drafts, _ in world.steps) <= 1


def test_a_drafter_that_is_not_wanted_is_not_written_to_at_every_step() -> None:
    """While drafts are not taken, commits go out together; the drafter misses none of them."""
    world = World(Machine(**CPU, accepted=_always(0.0)))
    heard: list[Commit] = []
    send = world.speculation._send

    def listen(connection, commands) -> None:
        heard.extend(c for c in commands if isinstance(c, Commit))
        send(connection, commands)

    world.speculation._send = listen
    world.run(400)
    assert len(heard) < 100
    tokens = [token for commit in heard for token in commit.tokens]
    assert heard[0].prefix.length == 3
    assert tokens == world.generation.sequence.tokens[3 : 3 + len(tokens)]
    assert 400 - len(tokens) <= 16


def test_a_stale_plain_step_sells_no_drafts() -> None:
    """A plain step that looks slower than one beside the drafter is an old figure, not a gain."""

    def choose(chance: float) -> Target:
        return best_lengths(
            quiet=lambda rows: 0.022,
            beside=lambda rows: 0.020,
            survivals=[[chance] * 4],
            waiting=lambda drafts: 0.001 * (drafts > 0),
            stepping=0.0,
            sequences=1,
            most_rows=32,
        )

    assert choose(0.01).length == 0
    assert choose(0.9).length > 0


@pytest.mark.parametrize("placement", ["separate", "shared"])
def test_a_window_holds_wherever_the_drafter_computes(placement) -> None:
    """However good drafts are, no step has more of them than the drafter may run ahead."""
    machine = MACHINES["cpu, good drafts" if placement == "separate" else "in turn, good drafts"][1]
    world = World(machine, placement=placement, window=2)
    world.run(300)
    assert max(drafts for drafts, _ in world.steps) == 2


def test_drafts_that_never_came_are_not_tried_in_turn() -> None:
    """Who waited for first drafts in vain is left out of probes until some come."""
    world = World(Machine(**TURNS, accepted=_always(0.9)), placement="shared")
    generation, probes = world.generation, Probes(soon=True)
    probes.count(worth=False)
    generation.late, generation.warm = True, False
    world.speculation._lengths._try(generation, probes)
    assert probes.on
    assert not generation.probing
    generation.warm = True
    world.speculation._lengths._try(generation, probes)
    assert generation.probing


def _probing(world: World, steps: int) -> list[int]:
    """After each of so many steps, how many sequences try drafts although none are worth it."""
    counts = []
    for _ in range(steps):
        world.run(1)
        counts.append(sum(g.probing for g in world.generations.values()))
    return counts


def test_one_tries_for_all() -> None:
    """Where nobody has drafts all try some once, and from then on one of them at a time: else a
    crowd would always wait for somebody's."""
    world = World(Machine(**CPU, accepted=_always(0.0)), accepted=[_always(0.0)] * 4)
    first, later = _probing(world, 70), _probing(world, 300)
    assert max(first) == 4
    assert max(later) == 1
