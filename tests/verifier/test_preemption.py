"""A full KV pool, prompts in pieces, shared prefixes: each request has the tokens it has alone."""

from __future__ import annotations

import math

import pytest

from slipstream.core.draft import Close, Open
from slipstream.core.params import SamplingParams
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.verifier.rig import ELSEWHERE, GREEDY, VOCAB, Rig, plain
from tests.verifier.scripts import Draft, Proposer
from tests.verifier.test_lossless import truth_of
from verifier_service.admission import Bounds
from verifier_service.generation import Finish
from verifier_service.plan import Limits

BLOCKS = 40
# How `prompts` are asked.
HOW = {"max_tokens": 90, "ignore_eos": True, "logprobs": 1}
# However busy the machine is, none waits too long.
PATIENT = Bounds(seconds=math.inf)
SHARED = tuple((3 * i) % VOCAB for i in range(70))


def limits_of(kind: str, exact_rows: int) -> Limits:
    if kind == "canonical":
        return Limits(prefill_chunk=32, strict=True)
    if exact_rows < 64:
        pytest.skip("large steps do not agree here")
    return Limits.of(strict=True, exact_rows=exact_rows, step_rows=64, prefill_chunk=32)


def prompts() -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Sixteen, half of them with a common beginning, greedy and at temperature 1."""
    made = []
    for i in range(16):
        tail = tuple((7 * i + j) % VOCAB for j in range(5 + 4 * i))
        params = GREEDY if i % 2 else SamplingParams(temperature=1.0, top_k=30, seed=i)
        made.append((SHARED + tail if i % 4 < 2 else tail, params))
    return made


@pytest.mark.parametrize("drafter", [False, True], ids=["plain", "drafter"])
@pytest.mark.parametrize("kind", ["canonical", "mixed"])
def test_sixteen_at_once(exact, answers_alone, kind, drafter) -> None:
    """Sixteen requests in a pool far too small, with preemption, prefix hits and prompts in pieces:
    bit for bit the tokens of each alone, and of the log probabilities, too."""
    runner, rows = exact
    limits = limits_of(kind, rows)
    alone = answers_alone(kind)
    rig = Rig(runner, limits=limits, bounds=PATIENT)
    if drafter:
        rig.engine.drafter_up(1, ELSEWHERE)
    outcomes, proposers = [], []
    script = [Draft("right", 5, 0), Draft("half", 4, 1), Draft("wrong", 2, 0)]
    for i, (prompt, params) in enumerate(prompts()):
        outcomes.append(rig.submit(prompt, params, **HOW))
        proposers.append(Proposer(rig, i + 1, outcomes[i], truth_of(alone[i]), script))
    rig.finish(lambda: [proposer() for proposer in proposers if drafter])
    counters = rig.engine.counters
    assert counters.preemptions > 0
    assert counters.cached_prompt_tokens > 0
    assert [o.finish for o in outcomes] == [Finish.LENGTH] * 16
    for outcome, expected in zip(outcomes, alone, strict=True):
        flat = [token for step in outcome.steps for token in step]
        assert flat == [token for step in expected.steps for token in step]
    if drafter:
        kinds = [type(c) for _, c in rig.commands if isinstance(c, Open | Close)]
        assert kinds.count(Open) == kinds.count(Close) >= 16 + counters.preemptions
        assert counters.accepted_tokens > 0
    runner.pool.forget()
    assert runner.pool.num_free == runner.pool.num_blocks


@pytest.mark.parametrize("kind", ["canonical", "mixed"])
def test_requests_that_arrive_together_compute_a_common_beginning_once(
    exact, kind, monkeypatch
) -> None:
    """Four at once, with a beginning longer than a step: the first computes it, the others begin
    with it, are told so, and have bit for bit what each has alone."""
    runner, rows = exact
    limits = limits_of(kind, rows)
    how = {"max_tokens": 8, "ignore_eos": True, "logprobs": 1}
    common = tuple((5 * i + i // 7) % VOCAB for i in range(100))
    wanted = [(*common, *(i + j for j in range(10))) for i in range(4)]
    alone = []
    for prompt in wanted:
        runner.pool.forget()
        alone.append(plain(runner, prompt, GREEDY, limits=limits, **how))
    runner.pool.forget()
    computed: list[int] = []
    forward = runner.forward

    def counted(segments, hidden=None):
        computed.extend(s.kv_length - s.position for s in segments if s.kv_length <= 110)
        return forward(segments, hidden)

    monkeypatch.setattr(runner, "forward", counted)
    rig = Rig(runner, limits=limits)
    outcomes = [rig.submit(prompt, GREEDY, **how) for prompt in wanted]
    rig.finish()
    assert [o.steps for o in outcomes] == [o.steps for o in alone]
    # The second begins in the step that ends the first, where that leaves it some rows.
    found = [0, 96 if kind == "canonical" else 64, 96, 96]
    assert [o.cached for o in outcomes] == found
    assert rig.engine.counters.cached_prompt_tokens == sum(found)
    assert sum(computed) == 4 * 110 - sum(found)
    runner.pool.forget()


@pytest.mark.parametrize("state", ["preempted", "prefill"])
def test_cancel_frees_what_is_half_done(runner, state) -> None:
    """A request that was preempted, or whose prompt is half computed, leaves nothing behind within
    one step of its cancellation."""
    rig = Rig(runner, limits=Limits(prefill_chunk=16, strict=True))
    rig.engine.drafter_up(1, ELSEWHERE)
    first = rig.submit(SHARED, max_tokens=180, ignore_eos=True)
    others = [rig.submit((i,) * 100, max_tokens=150, ignore_eos=True) for i in range(5, 9)]
    wanted = (lambda: rig.engine.counters.preemptions > 0) if state == "preempted" else None
    while not (
        wanted() if wanted else rig.engine.scheduler.running[-1:] and rig.engine.num_running > 1
    ):
        assert rig.step()
    scheduler = rig.engine.scheduler
    pool = scheduler.waiting if state == "preempted" else scheduler.running
    victim = next(g for g in pool if g.started and g.number > 1 and g.sequence.todo > 1)
    outcome = others[victim.number - 2]
    outcome.cancel()
    rig.step()
    assert outcome.finish is Finish.CANCELLED
    assert all(g is not victim for g in scheduler)
    for one in (first, *others):
        one.cancel()
    rig.step()
    assert runner.pool.num_used == 0
    opened = [c.sequence_id for _, c in rig.commands if isinstance(c, Open)]
    assert sorted(opened) == sorted(c.sequence_id for _, c in rig.commands if isinstance(c, Close))
    assert len(scheduler.accounts) == 0
    rig.finish()


def test_the_oldest_of_the_highest_priority_never_gives_way(runner) -> None:
    """Whatever else is preempted, the one that matters most runs from its start to its end."""
    rig = Rig(runner)
    late = [rig.submit((i,) * 90, max_tokens=160, ignore_eos=True, priority=1) for i in range(3)]
    rig.step()
    first = rig.submit((50,) * 90, max_tokens=160, ignore_eos=True, priority=0)
    while not first.ended:
        assert rig.step()
        places = {g.number for g in rig.engine.scheduler.running}
        assert 4 in places or not first.tokens or first.ended
    assert rig.engine.counters.preemptions > 0
    rig.finish()
    assert all(len(outcome.tokens) == 160 for outcome in late)


def test_alone_in_the_smallest_pool(checkpoint) -> None:
    """A request that just fits is served however many others hold the pool when it comes."""
    small = ModelRunner(load_model(checkpoint), kv_bytes=12 * 4096)
    rig = Rig(small)
    outcomes = [rig.submit((i,) * 20, max_tokens=172, ignore_eos=True) for i in range(3)]
    rig.finish()
    assert all(len(outcome.tokens) == 172 for outcome in outcomes)
    assert rig.engine.counters.preemptions > 0
