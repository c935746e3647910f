"""Verifier and drafter in one process, with a link between them that misbehaves on command."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.draft import Command
from slipstream.core.params import SamplingParams
from slipstream.engine.runner import ModelRunner
from tests.drafter.rig import DrafterRig, Message
from tests.verifier.rig import ELSEWHERE, GREEDY, HERE, VOCAB, Outcome, Rig, plain
from verifier_service.layouts import Drafter

PENALTIES = SamplingParams(
    temperature=1.0,
    top_k=50,
    top_p=0.95,
    min_p=0.001,
    repetition_penalty=1.2,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    logit_bias={5: 1.5},
    seed=77,
)
PROMPT = tuple(range(10, 30))


@dataclass(frozen=True, slots=True)
class Tick:
    """What happens between two steps of the verifier.

    Attributes:
        drafter_steps: how far the drafter gets meanwhile.
        commands: how many batches of commands reach it; they arrive in order.
        picks: positions of the proposals on their way that arrive now, in this order.
        lose: whether the oldest proposal on its way is lost.
        cut: whether the stream breaks, with everything that is on its way.
    """

    drafter_steps: int
    commands: int
    picks: tuple[int, ...]
    lose: bool
    cut: bool


@dataclass(slots=True)
class Pair:
    """A verifier, a drafter, and what is on its way between them."""

    verifier: Rig
    drafter: DrafterRig
    connection: int = 1
    where: Drafter = ELSEWHERE
    to_drafter: list[Command] = field(default_factory=list)
    to_verifier: list[Message] = field(default_factory=list)

    def connect(self) -> None:
        self.verifier.engine.drafter_up(self.connection, self.where)

    def collect(self) -> None:
        new, self.verifier.commands = self.verifier.commands, []
        self.to_drafter += [command for n, command in new if n == self.connection]
        sent, self.drafter.sent = self.drafter.sent, []
        self.to_verifier += [message for message in sent if message[0] == self.connection]

    def deliver(self, message: Message) -> None:
        self.verifier.engine.deliver(*message)

    def cut(self) -> None:
        self.verifier.engine.drafter_down(self.connection)
        self.drafter.engine.disconnect(self.connection)
        self.to_drafter.clear()
        self.to_verifier.clear()
        self.connection += 1
        self.connect()

    def tick(self, tick: Tick) -> None:
        self.collect()
        if tick.cut:
            self.cut()
        now, self.to_drafter = self.to_drafter[: tick.commands], self.to_drafter[tick.commands :]
        self.drafter.obey(*now, connection=self.connection)
        for _ in range(tick.drafter_steps):
            self.drafter.step()
        self.collect()
        if tick.lose and self.to_verifier:
            del self.to_verifier[0]
        for pick in tick.picks:
            if self.to_verifier:
                self.deliver(self.to_verifier.pop(pick % len(self.to_verifier)))

    def settle(self) -> None:
        """Delivers all there is; then neither side may hold anything."""
        self.collect()
        self.drafter.obey(*self.to_drafter, connection=self.connection)
        self.drafter.run()
        assert self.drafter.engine.num_open == 0
        assert self.drafter.runner.pool.num_used == 0


some_ticks = st.lists(
    st.builds(
        Tick,
        drafter_steps=st.integers(0, 4),
        commands=st.sampled_from([0, 1, 2, 100]),
        picks=st.lists(st.integers(0, 20), max_size=8).map(tuple),
        lose=st.sampled_from([False, False, True]),
        cut=st.sampled_from([False] * 9 + [True]),
    ),
    min_size=1,
    max_size=10,
)


ANY_LENGTH = {"length": None, "ngram": "auto"}
SETTINGS = [
    ("drafter_runner", "off", "off", {}),
    ("skipping_runner", "off", "off", {}),
    ("drafter_runner", "on", "off", {}),
    ("skipping_runner", "auto", "auto", {}),
    ("skipping_runner", "on", "on", {"ngram": "on"}),
    ("skipping_runner", "auto", "auto", ANY_LENGTH),
    ("drafter_runner", "off", "on", ANY_LENGTH | {"placement": "shared"}),
    ("skipping_runner", "off", "off", ANY_LENGTH | {"placement": "auto"}),
    ("screened_runner", "off", "off", {}),
    ("screened_runner", "on", "on", ANY_LENGTH),
]


@functools.cache
def _expected(runner: ModelRunner, prompt: tuple[int, ...], seed: int | None) -> Outcome:
    """Of plain decoding. Every setting gets the same examples: each is computed once for all."""
    return plain(runner, prompt, _params(seed), max_tokens=24)


def _params(seed: int | None) -> SamplingParams:
    """Greedy without a seed."""
    return GREEDY if seed is None else SamplingParams(temperature=1.0, top_p=0.95, seed=seed)


@pytest.mark.parametrize(("drafter", "ngram", "early_stop", "verifier"), SETTINGS)
@settings(deadline=None, max_examples=20, derandomize=True)
@given(ticks=some_ticks, seed=st.integers(0, 2**40), greedy=st.booleans(), count=st.integers(1, 3))
def test_any_link(
    request, verifier_runner, drafter, ngram, early_stop, verifier, ticks, seed, greedy, count
) -> None:
    """Proposals lost, late and reordered, commands late, streams cut: tokens of plain decoding,
    with every setting of the drafter, of the length policy and of the placement."""
    params_seed = None if greedy else seed
    prompts = [tuple((seed + j * (i + 1)) % VOCAB for j in range(2 + 13 * i)) for i in range(count)]
    expected = [_expected(verifier_runner, prompt, params_seed) for prompt in prompts]
    drafter_rig = DrafterRig(request.getfixturevalue(drafter), ngram=ngram, early_stop=early_stop)
    pair = Pair(Rig(verifier_runner, **verifier), drafter_rig)
    pair.where = HERE if verifier.get("placement") == "auto" else ELSEWHERE
    pair.connect()
    params = _params(params_seed)
    outcomes = [pair.verifier.submit(prompt, params, max_tokens=24) for prompt in prompts]
    script = itertools.cycle(ticks)
    pair.verifier.finish(lambda: pair.tick(next(script)))
    assert [(o.tokens, o.finish) for o in outcomes] == [(e.tokens, e.finish) for e in expected]
    pair.settle()


def _in_step(pair: Pair) -> None:
    """Both sides hear all there is to hear, and the drafter runs its whole window ahead."""
    pair.collect()
    pair.drafter.obey(*pair.to_drafter, connection=1)
    pair.to_drafter.clear()
    pair.drafter.run()
    pair.collect()
    for message in pair.to_verifier:
        pair.deliver(message)
    pair.to_verifier.clear()


@pytest.mark.parametrize("params", [GREEDY, PENALTIES], ids=["greedy", "penalties"])
def test_the_same_weights_are_always_right(verifier_runner, drafter_runner, params) -> None:
    """A drafter with the verifier's own weights is accepted to the last draft: both sides draw by
    the same rule from the same seed, position and counts, through any number of commits."""
    pair = Pair(Rig(verifier_runner), DrafterRig(drafter_runner))
    pair.connect()
    outcomes = [
        pair.verifier.submit(PROMPT[i:], params, max_tokens=50, ignore_eos=True) for i in range(2)
    ]
    pair.verifier.finish(lambda: _in_step(pair))
    for outcome in outcomes:
        assert outcome.counts is not None
        assert outcome.counts.accepted == outcome.counts.drafted >= 40
        assert outcome.counts.steps <= 8
    pair.settle()
    assert pair.drafter.engine.counters.rolled_back_tokens == 0


def test_opened_in_the_middle_it_is_right_as_well(verifier_runner, drafter_runner) -> None:
    """A drafter that comes late counts prompt and generated tokens apart, and is always right."""
    pair = Pair(Rig(verifier_runner), DrafterRig(drafter_runner))
    outcome = pair.verifier.submit(PROMPT, PENALTIES, max_tokens=50, ignore_eos=True)
    for _ in range(10):
        pair.verifier.step()
    pair.connect()
    pair.verifier.finish(lambda: _in_step(pair))
    assert outcome.counts is not None
    assert outcome.counts.accepted == outcome.counts.drafted >= 30
    pair.settle()


def test_a_worse_drafter_is_right_at_times(verifier_runner, skipping_runner) -> None:
    """A drafter with skipped sublayers is accepted in part; what it rolls back is counted."""
    pair = Pair(Rig(verifier_runner), DrafterRig(skipping_runner))
    pair.connect()
    outcome = pair.verifier.submit(PROMPT, PENALTIES, max_tokens=120, ignore_eos=True)
    pair.verifier.finish(lambda: _in_step(pair))
    assert outcome.counts is not None
    assert 0 < outcome.counts.accepted < outcome.counts.drafted
    assert pair.drafter.engine.counters.rolled_back_tokens > 0
    expected = plain(verifier_runner, PROMPT, PENALTIES, max_tokens=120, ignore_eos=True)
    assert outcome.tokens == expected.tokens
    pair.settle()
