"""Many requests at once: places, KV room, cancellation, and faults of one that spare the others."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.draft import Close, Commit, Open, Proposal, Refusal
from slipstream.core.errors import ContextTooLong, InternalError, InvalidParameter, Overloaded
from slipstream.core.params import SamplingParams, StopConditions
from tests.verifier.rig import CONTEXT, ELSEWHERE, GREEDY, VOCAB, Outcome, Rig, plain
from tests.verifier.scripts import Draft, Proposer
from tests.verifier.test_lossless import EVERYTHING, check_counts, some_script, truth_of
from verifier_service.admission import Bounds
from verifier_service.generation import Finish, GenerationRequest
from verifier_service.plan import Limits

PROMPT = tuple(range(10, 30))
LONG = tuple(i % VOCAB for i in range(100))


def rig_with_drafter(runner, **how) -> Rig:
    rig = Rig(runner, **how)
    rig.engine.drafter_up(1, ELSEWHERE)
    return rig


def sent(rig: Rig, kind: type) -> list[int]:
    return [c.sequence_id for _, c in rig.commands if isinstance(c, kind)]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    scripts=st.lists(some_script, min_size=2, max_size=6),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_sequences_beside_each_other(strict_runner, scripts, seed, data) -> None:
    """Several sequences with drafts of every sort, or with none, each get their own tokens."""
    rig = rig_with_drafter(strict_runner, max_running=4)
    wanted, outcomes, proposers = [], [], []
    for i, script in enumerate(scripts):
        prompt = tuple((seed + 7 * i + j) % VOCAB for j in range(3 + 11 * i))
        params = GREEDY if i % 3 == 2 else SamplingParams(temperature=1.0, top_k=30, seed=seed + i)
        speculative = data.draw(st.booleans())
        expected = plain(strict_runner, prompt, params, max_tokens=5 + 3 * i)
        outcome = rig.submit(prompt, params, max_tokens=5 + 3 * i, speculative=speculative)
        wanted.append((expected.tokens, expected.finish))
        outcomes.append(outcome)
        proposers.append(Proposer(rig, i + 1, outcome, truth_of(expected), script))
    rig.finish(lambda: [proposer() for proposer in proposers])
    assert [(o.tokens, o.finish) for o in outcomes] == wanted
    check_counts(rig, outcomes)
    assert sorted(sent(rig, Open)) == sorted(sent(rig, Close))


@pytest.mark.parametrize("strict", [False, True])
def test_a_hundred_requests(runner, strict) -> None:
    """A hundred at once, more than places and KV room: all end, with the tokens of each alone."""
    limits = Limits(prefill_chunk=64, strict=strict)
    kinds = [(tuple((i * 5 + j) % VOCAB for j in range(1 + 23 * i)), i) for i in range(8)]
    how = {"max_tokens": 20, "ignore_eos": True}
    alone = []
    for prompt, seed in kinds:
        one = Rig(runner, limits=limits)
        alone.append(one.submit(prompt, SamplingParams(seed=seed), speculative=False, **how))
        one.finish()
    rig = rig_with_drafter(runner, limits=limits, max_running=12)
    need = sum(runner.pool.blocks_for(len(kinds[i % 8][0]) + 20) for i in range(100))
    assert need > 10 * runner.pool.num_blocks, "the test is about too little room"
    outcomes, proposers = [], []
    for i in range(100):
        prompt, seed = kinds[i % 8]
        outcome = rig.submit(prompt, SamplingParams(seed=seed), speculative=i % 3 > 0, **how)
        script = [Draft("right", 3, 0), Draft("half", 4, 1), Draft("wrong", 2, 0)]
        proposers.append(Proposer(rig, i + 1, outcome, truth_of(alone[i % 8]), script))
        outcomes.append(outcome)

    most = 0

    def before_step() -> None:
        nonlocal most
        most = max(most, rig.engine.num_running)
        for proposer in proposers:
            proposer()

    rig.finish(before_step)
    assert [o.tokens for o in outcomes] == [alone[i % 8].tokens for i in range(100)]
    assert 2 < most <= 12
    check_counts(rig, outcomes)


def test_first_come_first_served(runner) -> None:
    """One who waits for room is not overtaken by a smaller one."""
    rig = Rig(runner)
    held = [rig.submit((i,) * 200, max_tokens=50, ignore_eos=True) for i in (5, 6)]
    rig.step()
    big = rig.submit((7,) * 200, max_tokens=10, ignore_eos=True)
    small = rig.submit((8,), max_tokens=1)
    rig.step()
    assert (rig.engine.num_running, rig.engine.num_waiting) == (2, 2)
    for outcome in held:
        outcome.cancel()
    rig.step()
    assert rig.engine.num_waiting == 0
    big.cancel()
    rig.finish()
    assert small.finish is not None


@pytest.mark.parametrize("state", ["inbox", "waiting", "prefill", "decode"])
def test_cancel(runner, state) -> None:
    """Cancelling frees all that a request holds within one step, and tells the drafter."""
    rig = rig_with_drafter(runner, max_running=1, limits=Limits(prefill_chunk=16, strict=True))
    other = None
    if state == "waiting":
        other = rig.submit(PROMPT, max_tokens=30, ignore_eos=True)
        rig.step()
    outcome = rig.submit(LONG, max_tokens=50, ignore_eos=True)
    for _ in range({"inbox": 0, "waiting": 2, "prefill": 3, "decode": 12}[state]):
        rig.step()
    number = 2 if other else 1
    used = runner.pool.num_used
    outcome.cancel()
    outcome.cancel()
    rig.step()
    assert (outcome.finish, outcome.error) == (Finish.CANCELLED, None)
    assert bool(outcome.tokens) == (state == "decode")
    if other is None:
        assert runner.pool.num_used == 0
    else:
        assert runner.pool.num_used == used
    opened = state in {"prefill", "decode"}
    assert sent(rig, Open).count(number) == sent(rig, Close).count(number) == opened
    rig.finish()
    outcome.cancel()  # long after its end: nothing to do
    rig.finish()
    if other is not None:
        assert other.finish is Finish.LENGTH


@pytest.mark.parametrize("fails_at", [1, 3, 99])
def test_listener_that_raises(runner, fails_at) -> None:
    """A listener that raises ends its own request only: all is freed, the others go on."""
    rig = rig_with_drafter(runner)
    heard = []

    def listener(progress) -> None:
        heard.append(progress)
        if len(heard) >= fails_at or progress.finish:
            raise RuntimeError("the client is gone")

    rig.submit(PROMPT, max_tokens=8, ignore_eos=True, listener=listener)
    other = rig.submit(PROMPT, EVERYTHING, max_tokens=12, ignore_eos=True)
    rig.finish()
    assert other.tokens == plain(runner, PROMPT, EVERYTHING, max_tokens=12, ignore_eos=True).tokens
    assert sorted(sent(rig, Close)) == [1, 2]
    # It hears no more after it failed, but for the one attempt to tell it that it ended.
    assert len(heard) == min(fails_at + 1, 8)


def test_failing_forward(runner, monkeypatch) -> None:
    """A forward pass that raises ends those in it with an error; those that wait are served."""
    rig = rig_with_drafter(runner, max_running=2)
    outcomes = [rig.submit(PROMPT, EVERYTHING, max_tokens=9, ignore_eos=True) for _ in range(4)]
    forward, calls = runner.forward, 0

    def failing(segments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of luck")
        return forward(segments)

    monkeypatch.setattr(runner, "forward", failing)
    rig.finish()
    failed, served = outcomes[:2], outcomes[2:]
    assert all(isinstance(o.error, InternalError) for o in failed)
    assert all("out of luck" in str(o.error) for o in failed)
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=9, ignore_eos=True)
    assert [o.tokens for o in served] == [expected.tokens] * 2
    assert sorted(sent(rig, Open)) == sorted(sent(rig, Close)) == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [GREEDY, EVERYTHING], ids=["greedy", "everything"])
def test_numbers_that_are_none(runner, monkeypatch, bad, params) -> None:
    """Logits that are not finite end that request with an error, and no other."""
    rig = rig_with_drafter(runner)
    spoiled, healthy = (rig.submit(PROMPT, params, max_tokens=9, ignore_eos=True) for _ in range(2))
    forward = runner.forward

    def spoiling(segments):
        logits = forward(segments).clone()
        if len(segments) == 2 and segments[0].position > 24:
            logits[0, 3] = bad
        return logits

    with torch.inference_mode():
        monkeypatch.setattr(runner, "forward", spoiling)
        rig.finish()
    assert isinstance(spoiled.error, InternalError)
    expected = plain(runner, PROMPT, params, max_tokens=9, ignore_eos=True)
    assert healthy.tokens == expected.tokens
    assert spoiled.tokens == expected.tokens[: len(spoiled.tokens)]


def test_drafter_that_comes_and_goes(runner) -> None:
    """A drafter is told of every live sequence when it comes, and of nothing while it is away."""
    rig = Rig(runner)
    outcome = rig.submit(PROMPT, EVERYTHING, max_tokens=30, ignore_eos=True)
    rig.step()
    rig.step()
    assert rig.commands == []
    rig.engine.drafter_up(7, ELSEWHERE)
    rig.step()
    (connection, opened), *_ = rig.commands
    assert connection == 7
    assert isinstance(opened, Open)
    assert (opened.tokens, opened.num_prompt) == ((*PROMPT, *outcome.tokens[:2]), len(PROMPT))
    rig.engine.drafter_down(7)
    rig.step()
    count = len(rig.commands)
    rig.propose(Proposal(1, rig.chain(PROMPT).at(20), (1, 3)), drafter=7)
    rig.engine.drafter_down(7)
    rig.step()
    assert len(rig.commands) == count
    rig.engine.drafter_up(8, ELSEWHERE)
    rig.engine.drafter_down(7)  # news of the old one, late
    rig.step()
    assert [(n, type(c)) for n, c in rig.commands[count:]] == [(8, Open), (8, Commit)]
    rig.finish()
    assert rig.commands[-1] == (8, Close(1))
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=30, ignore_eos=True)
    assert outcome.tokens == expected.tokens


def test_commits_replay_the_sequence(runner) -> None:
    """A drafter that follows its commands knows the whole sequence, link by link."""
    rig = rig_with_drafter(runner)
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=25, ignore_eos=True)
    outcome = rig.submit(PROMPT, EVERYTHING, max_tokens=25, ignore_eos=True)
    script = [Draft("right", 5, 0), Draft("half", 3, 0)]
    rig.finish(Proposer(rig, 1, outcome, truth_of(expected), script))
    known: list[int] = []
    for _, command in rig.commands:
        if isinstance(command, Open):
            known = list(command.tokens)
        elif isinstance(command, Commit):
            assert command.prefix == rig.chain(known).at(len(known))
            known += command.tokens
    told = len(known) - len(PROMPT)
    assert known[len(PROMPT) :] == outcome.tokens[:told]
    assert told >= len(outcome.tokens) - 9  # the last step is told by the Close


def test_refusal(runner) -> None:
    """After a refusal a sequence decodes plainly, and the drafter hears no more of it."""
    rig = rig_with_drafter(runner)
    outcome = rig.submit(PROMPT, EVERYTHING, max_tokens=20, ignore_eos=True)
    rig.step()
    rig.refuse(Refusal(1, "no room"), Refusal(55, "never heard of"))
    count = len(rig.commands)
    rig.propose(Proposal(1, rig.chain(PROMPT).at(20), (1, 3)))
    rig.finish()
    assert len(rig.commands) == count
    assert outcome.counts is not None
    assert outcome.counts.drafted == 0
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=20, ignore_eos=True)
    assert outcome.tokens == expected.tokens


def test_refused_sequences_are_offered_again(runner) -> None:
    """A refused sequence is offered again after some steps, after twice as many when it is refused
    again, and has drafts once it is taken."""
    rig = rig_with_drafter(runner)
    outcome = rig.submit(PROMPT, EVERYTHING, max_tokens=120, ignore_eos=True)
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=120, ignore_eos=True)
    offered: list[int] = []
    step = 0
    proposer = Proposer(rig, 1, outcome, truth_of(expected), [Draft("right", 3, 0)])
    while not outcome.ended:
        rig.step()
        step += 1
        if len(sent(rig, Open)) > len(offered):
            offered.append(step)
            if len(offered) < 3:
                rig.refuse(Refusal(1, "no room"))
        if len(offered) == 3:
            proposer()
    rig.finish()
    assert [b - a for a, b in itertools.pairwise(offered)] == [32, 64]
    assert outcome.counts is not None
    assert outcome.counts.accepted > 0
    assert outcome.tokens == expected.tokens


@pytest.mark.parametrize(
    ("prompt", "params", "max_tokens", "kind", "words"),
    [
        ((), GREEDY, 5, InvalidParameter, "prompt"),
        ((1, VOCAB), GREEDY, 5, InvalidParameter, f"token id {VOCAB}"),
        ((1, -1), GREEDY, 5, InvalidParameter, "token id -1"),
        ((1,) * 250, GREEDY, 7, ContextTooLong, "context window is 256"),
        ((1,) * 300, GREEDY, 1, ContextTooLong, "prompt has 300"),
        ((1,), SamplingParams(logit_bias={VOCAB: 1.0}), 5, InvalidParameter, "logit_bias"),
    ],
)
def test_requests_that_can_never_be_served(runner, prompt, params, max_tokens, kind, words) -> None:
    """What cannot be served is refused at once with the reason, and leaves no trace."""
    rig = Rig(runner)
    with pytest.raises(kind, match=words):
        rig.submit(prompt, params, max_tokens=max_tokens)
    rig.finish()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", "x" * 257),
        ("request_id", "two\nlines"),
        ("tenant", "x" * 257),
        ("tenant", "nul\0"),
        ("cache_salt", "x" * 513),
        ("deadline_seconds", 1e308),
        ("deadline_seconds", math.inf),
        ("deadline_seconds", 86401.0),
    ],
)
def test_fields_are_bounded_at_the_verifier_itself(name, value) -> None:
    """A client that goes past the gateway is held to bounds, too, and told which field it is."""
    fields = {"request_id": "x", "prompt": (1,), "params": GREEDY, "stop": StopConditions(5)}
    rest = {"speculative": False, "logprobs": None, "listener": lambda _: None}
    with pytest.raises(InvalidParameter) as raised:
        GenerationRequest(**{**fields, **rest, name: value})
    assert raised.value.param == name
    assert len(raised.value.message) < 200


def test_queue_is_bounded(runner) -> None:
    """Requests beyond places and queue are refused, also where all arrive within one step."""
    rig = Rig(runner, max_running=2, bounds=Bounds(requests=3))
    outcomes, refused = [], 0
    for _ in range(20):
        try:
            outcomes.append(rig.submit(PROMPT, max_tokens=4, ignore_eos=True))
        except Overloaded:
            refused += 1
    assert (len(outcomes), refused) == (5, 15)
    rig.finish()
    assert all(o.finish is Finish.LENGTH for o in outcomes)


def test_more_than_the_pool_ever_holds(checkpoint) -> None:
    """A request that no empty pool could hold is refused instead of waiting for ever."""
    from slipstream.engine.checkpoint import load_model
    from slipstream.engine.runner import ModelRunner

    small = ModelRunner(load_model(checkpoint), kv_bytes=2**15)
    rig = Rig(small)
    room = small.pool.num_blocks * 16
    assert room < CONTEXT
    with pytest.raises(ContextTooLong, match="KV pool"):
        rig.submit((1,) * 10, max_tokens=room - 9)
    outcome = rig.submit((1,) * 10, max_tokens=room - 10, ignore_eos=True)
    rig.finish()
    assert len(outcome.tokens) == room - 10


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_thread(runner) -> None:
    """On its own thread: submissions from many threads all end; stopping tells who still runs."""
    rig = Rig(runner)
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=6, ignore_eos=True).tokens
    rig.engine.start()
    outcomes: list[Outcome] = []
    done = threading.Semaphore(0)

    def submit() -> None:
        for _ in range(5):
            outcome = Outcome(PROMPT)

            def hear(progress, outcome=outcome) -> None:
                outcome.hear(progress)
                if outcome.ended:
                    done.release()

            outcomes.append(outcome)
            rig.submit(PROMPT, EVERYTHING, max_tokens=6, ignore_eos=True, listener=hear)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert all(done.acquire(timeout=60) for _ in range(40))
    assert [o.tokens for o in outcomes] == [expected] * 40
    # Nothing is computed until it is told to stop, or the last one might be over by then.
    rig.engine.post(lambda: wait_for(lambda: rig.engine._stopping))
    last = rig.submit(PROMPT, max_tokens=200, ignore_eos=True)
    rig.engine.stop(60)
    assert not rig.engine.alive
    assert last.finish is Finish.CANCELLED
    assert runner.pool.num_used == 0
