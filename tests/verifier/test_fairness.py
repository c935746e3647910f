"""Who is served when many want to be: priorities, tenants, deadlines, and bounded waits."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.errors import DeadlineExceeded, InvalidParameter, Overloaded
from slipstream.core.params import StopConditions
from tests.verifier.rig import GREEDY, VOCAB, Outcome, Rig
from verifier_service.admission import Bounds, retry_after
from verifier_service.budget import PromptBudget
from verifier_service.fairness import Accounts
from verifier_service.generation import Finish, GenerationRequest
from verifier_service.plan import LEAST_PROMPT_ROWS, Limits

PROMPT = tuple(range(10, 20))


class Clock:
    """Seconds, by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_does_not_take_anothers_share(runner) -> None:
    """One tenant has forty requests waiting when another comes with eight: from then on both get
    about as many tokens, and the second waits for places no longer than its share asks for."""
    rig = Rig(runner, max_running=4)
    how = {"max_tokens": 8, "ignore_eos": True}
    flood = [rig.submit(PROMPT, tenant="flood", **how) for _ in range(40)]
    for _ in range(20):
        rig.step()
    before = sum(len(o.tokens) for o in flood)
    assert before > 40
    polite = [rig.submit(PROMPT, tenant="polite", **how) for _ in range(8)]
    while not all(o.ended for o in polite):
        assert rig.step()
    theirs = sum(len(o.tokens) for o in flood) - before
    ours = sum(len(o.tokens) for o in polite)
    # In turns; a few of the flood had their places already.
    assert ours <= theirs <= 2 * ours
    rig.finish()
    assert len(rig.engine.scheduler.accounts) == 0


def test_nobody_saves_up_for_a_flood() -> None:
    """A tenant that comes back after a pause is lifted to the least of those that are there."""
    accounts = Accounts()
    accounts.join("busy")
    accounts.charge("busy", 1000.0)
    accounts.join("new")
    assert accounts.served("new") == 1000.0
    accounts.charge("new", 50.0)
    accounts.leave("new")
    accounts.join("new")
    assert accounts.served("new") == 1050.0, "what it was served is not forgotten either"
    accounts.leave("new")
    accounts.leave("busy")
    assert len(accounts) == 0


def test_lower_priorities_go_first(runner) -> None:
    """Of those that wait, the lowest priority number starts first, whoever came first."""
    rig = Rig(runner, max_running=1)
    order: list[int] = []

    def submit(priority: int) -> None:
        def hear(progress) -> None:
            if progress.finish:
                order.append(priority)

        rig.submit(PROMPT, max_tokens=2, ignore_eos=True, priority=priority, listener=hear)

    for priority in (0, 3, -1, 2, 0, -1):
        submit(priority)
    rig.finish()
    assert order == [-1, -1, 0, 0, 2, 3]


@pytest.mark.parametrize("state", ["waiting", "running", "prefill"])
def test_deadlines(runner, state) -> None:
    """Past its deadline a request ends with DeadlineExceeded within a step, wherever it is, and
    frees all that it held; the others go on."""
    clock = Clock()
    limits = Limits(prefill_chunk=16, strict=True)
    rig = Rig(runner, limits=limits, max_running=2 if state != "waiting" else 1, clock=clock)
    other = rig.submit(PROMPT, max_tokens=30, ignore_eos=True)
    prompt = tuple(i % VOCAB for i in range(150)) if state == "prefill" else PROMPT
    late = rig.submit(prompt, max_tokens=30, ignore_eos=True, deadline_seconds=5.0)
    for _ in range(5):
        rig.step()
    assert bool(late.tokens) == (state == "running")
    clock.now += 5.1
    rig.step()
    assert isinstance(late.error, DeadlineExceeded)
    assert rig.engine.counters.deadlines == 1
    rig.finish()
    assert other.finish is Finish.LENGTH


def test_a_deadline_ends_a_wait_for_drafts(runner) -> None:
    """While nothing is computed the engine wakes for the next deadline."""
    clock = Clock()
    rig = Rig(runner, clock=clock)
    rig.submit(PROMPT, max_tokens=30, ignore_eos=True, deadline_seconds=5.0)
    rig.engine._rest(clock.now)
    rig.engine._read_inbox()
    rig.engine._rest(clock.now)
    assert rig.engine.patience == pytest.approx(5.0)
    clock.now += 6
    rig.finish()
    assert rig.engine.counters.deadlines == 1


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_deadlines_that_are_none(runner, seconds) -> None:
    """A deadline that is no number of seconds is refused."""
    with pytest.raises(InvalidParameter, match="deadline"):
        Rig(runner).submit(PROMPT, deadline_seconds=seconds)
    with pytest.raises(DeadlineExceeded):
        Rig(runner).submit(PROMPT, deadline_seconds=0.0)


def loaded_rig(runner, clock: Clock, **bounds) -> tuple[Rig, list[Outcome]]:
    """An engine that has worked off a queue at ten steps a second, and has one again."""
    rig = Rig(runner, max_running=2, clock=clock, bounds=Bounds(**bounds))
    outcomes = [rig.submit(PROMPT, max_tokens=10, ignore_eos=True) for _ in range(8)]
    while rig.engine.num_waiting > 3 or not rig.engine.counters.steps:
        rig.step()
        clock.now += 0.1
    return rig, outcomes


def test_expected_wait_is_work_over_measured_rate(runner) -> None:
    """The expected wait of a newcomer is about what it then waits."""
    clock = Clock()
    rig, _ = loaded_rig(runner, clock)
    expected = rig.engine.expected_wait_seconds
    begun = clock.now
    last = rig.submit(PROMPT, max_tokens=10, ignore_eos=True)
    while not last.tokens:
        rig.step()
        clock.now += 0.1
    assert 0.5 * expected <= clock.now - begun <= 2 * expected + 0.5
    rig.finish()
    assert rig.engine.expected_wait_seconds == 0.0


def test_who_would_wait_too_long_is_refused_at_once(runner) -> None:
    """Longer than allowed, or than its own deadline: refused with the time after which to come
    back; another tenant, whose wait is short, is taken."""
    clock = Clock()
    rig, outcomes = loaded_rig(runner, clock, seconds=1000.0)
    expected = rig.engine.expected_wait_seconds
    assert expected > 1.0
    with pytest.raises(Overloaded, match="deadline") as refusal:
        rig.submit(PROMPT, max_tokens=10, deadline_seconds=expected / 4)
    assert 0.5 <= refusal.value.retry_after <= 2 * expected
    rig.submit(PROMPT, max_tokens=10, tenant="another", deadline_seconds=expected)
    rig.engine.admission._bounds = Bounds(seconds=expected / 2)
    with pytest.raises(Overloaded, match="would wait"):
        rig.submit(PROMPT, max_tokens=10)
    assert rig.engine.admission.refused == {"queue": 0, "wait": 1, "deadline": 1}
    rig.finish()
    assert all(o.finish is Finish.LENGTH for o in outcomes)


def test_one_tenant_cannot_fill_the_queue(runner) -> None:
    """However many one tenant sends, another still finds room to wait."""
    rig = Rig(runner, max_running=1, bounds=Bounds(requests=8))
    taken = {"flood": 0, "polite": 0}
    for tenant in ["flood"] * 20 + ["polite"]:
        try:
            rig.submit(PROMPT, max_tokens=2, tenant=tenant)
            taken[tenant] += 1
        except Overloaded as failure:
            refusal = failure
    assert refusal.retry_after == retry_after(0.0)
    assert taken == {"flood": 7, "polite": 1}
    rig.finish()


def test_a_wait_beyond_all_expectation_ends(runner) -> None:
    """A request that has waited twice as long as allowed is given up with a time to come back."""
    clock = Clock()
    rig = Rig(runner, max_running=1, clock=clock, bounds=Bounds(seconds=2.0))
    first = rig.submit(PROMPT, max_tokens=100, ignore_eos=True)
    second = rig.submit(PROMPT, max_tokens=5, ignore_eos=True)
    rig.step()
    clock.now += 4.1
    rig.step()
    assert isinstance(second.error, Overloaded)
    assert second.error.retry_after is not None
    rig.finish()
    assert first.finish is Finish.LENGTH


class Unread(tuple):
    """Tokens of which nobody may read one."""

    __slots__ = ()

    def __iter__(self):
        raise AssertionError("somebody reads the tokens")

    def __getitem__(self, place):
        raise AssertionError("somebody reads a token")


def test_refusals_are_cheap(runner) -> None:
    """A refusal looks at no token, however long the prompt is."""
    rig = Rig(runner, max_running=1, bounds=Bounds(requests=1))
    for _ in range(2):
        rig.submit(PROMPT, max_tokens=5)
    prompt, stop = Unread(i % VOCAB for i in range(200)), StopConditions(5)
    request = GenerationRequest("test", prompt, GREEDY, stop, True, None, lambda _: None)
    with pytest.raises(Overloaded):
        rig.engine.submit(request)
    rig.finish()
    with pytest.raises(AssertionError, match="reads"):
        rig.engine.submit(request)


def test_prompt_budget() -> None:
    """Prompts get the rows with which a step takes at most so many times as long, as measured; the
    whole step alone; and always a few."""
    waited = 0.0
    budget = PromptBudget(lambda rows: 0.01 + 0.0005 * rows, lambda: waited, 2.0)
    assert budget.rows(0, 0, 512) == 512
    # 0.014 s without: 0.028 s are 36 rows.
    assert budget.rows(8, 8, 512) in {27, 28}
    assert budget.rows(8, 8, 10) == 10
    # 0.02 s of waiting for drafts are stretched, too: 0.068 s in all, of which 0.048 s are left.
    waited = 0.02
    assert budget.rows(8, 8, 512) in {67, 68}
    slow = PromptBudget(lambda rows: 1.0 * rows, lambda: 0.0, 1.1)
    assert slow.rows(8, 8, 512) == LEAST_PROMPT_ROWS


random_request = st.tuples(
    st.integers(1, 120),  # prompt
    st.integers(1, 60),  # output
    st.sampled_from(["a", "b", "c"]),
    st.integers(0, 2),  # priority
    st.integers(0, 60),  # the step at which it comes
    st.one_of(st.none(), st.integers(0, 80)),  # the step at which it is cancelled
)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(requests=st.lists(random_request, min_size=1, max_size=14), mixed=st.booleans())
def test_any_load(strict_runner, requests, mixed) -> None:
    """Any load: every request ends, with all its tokens unless it was cancelled; no step is larger
    than it may be; nobody that could compute is left out for long; all is free at the end."""
    limits = Limits(step_rows=64, prefill_chunk=32, strict=not mixed)
    rig = Rig(strict_runner, limits=limits, max_running=5)
    forward, sizes = strict_runner.forward, []

    def counting(segments):
        sizes.append(sum(len(s.tokens) for s in segments))
        return forward(segments)

    strict_runner.forward = counting
    outcomes: dict[int, Outcome] = {}
    served: dict[int, tuple[int, int]] = {}
    rng = random.Random(0)
    try:
        for step in range(1500):
            for i, (prompt, output, tenant, priority, at, cancelled) in enumerate(requests):
                if at == step:
                    tokens = tuple(rng.randrange(VOCAB) for _ in range(prompt))
                    how = {"max_tokens": output, "ignore_eos": True}
                    outcomes[i] = rig.submit(tokens, tenant=tenant, priority=priority, **how)
                if cancelled is not None and cancelled == step and i in outcomes:
                    outcomes[i].cancel()
            rig.step()
            for g in rig.engine.scheduler.running:
                if served.get(g.number, (-1, 0))[0] != g.turn:
                    served[g.number] = (g.turn, step)
                assert step - served[g.number][1] < 400
            if step > 80 and len(rig.engine._by_number) == 0:
                break
        rig.finish()
    finally:
        strict_runner.forward = forward
        strict_runner.pool.forget()
    assert max(sizes) <= 64
    assert len(outcomes) == len(requests)
    for i, (_, output, _, _, _, cancelled) in enumerate(requests):
        assert outcomes[i].ended
        if cancelled is None or outcomes[i].finish is Finish.LENGTH:
            assert len(outcomes[i].tokens) == output
        else:
            assert outcomes[i].finish is Finish.CANCELLED
    assert len(rig.engine.scheduler.accounts) == 0
    assert strict_runner.pool.num_free == strict_runner.pool.num_blocks
