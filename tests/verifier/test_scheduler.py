"""The scheduler between two steps: who is charged for what, and whose turn it is."""

from __future__ import annotations

import pytest

from slipstream.core.errors import Overloaded
from tests.verifier.rig import VOCAB, Rig
from verifier_service.admission import Bounds
from verifier_service.fairness import Accounts, service
from verifier_service.generation import Finish
from verifier_service.plan import Limits, StepPlan

# Strict in small steps only: prompts have steps of their own.
CANONICAL = Limits(prefill_chunk=16, strict=True)


def _text(kind: int, length: int) -> tuple[int, ...]:
    return tuple((31 * kind + 7 * i) % VOCAB for i in range(length))


def test_who_gave_way_is_next(runner) -> None:
    """One that gave its room back goes before those of its tenant that came later."""
    rig = Rig(runner, max_running=4)
    for kind in range(4):
        rig.submit(_text(kind, 100), max_tokens=140, ignore_eos=True)
    later = rig.submit(_text(9, 10), max_tokens=5, ignore_eos=True)
    while not rig.engine.counters.preemptions:
        assert rig.step()
    (gone,) = (g for g in rig.engine.scheduler.waiting if g.started)
    assert rig.engine.scheduler.waiting.head() is gone
    while gone not in rig.engine.scheduler.running:
        assert not later.steps
        assert rig.step()
    rig.finish()
    assert later.finish is Finish.LENGTH


def test_what_was_cached_is_told_of_the_first_start(runner) -> None:
    """Computing a sequence again, or finding its own blocks then, changes nothing of its usage."""
    runner.pool.forget()
    rig = Rig(runner, limits=CANONICAL)
    rig.submit(_text(1, 70), max_tokens=1)
    rig.finish()
    rig.submit(_text(1, 70), max_tokens=60, ignore_eos=True)
    rig.step()
    (generation,) = rig.engine.scheduler.running
    assert generation.cached == 64
    rooms = rig.engine._rooms
    rooms.free(generation)
    runner.pool.forget()
    assert rooms.take(generation, spare=0)
    assert (generation.sequence.computed, generation.cached) == (0, 64)
    rig.finish()


@pytest.mark.parametrize(("sequences", "rows"), [(6, 4), (5, 4), (7, 3), (5, 2)])
def test_more_sequences_than_rows_take_turns(runner, sequences, rows) -> None:
    """After every step nobody has had more than one turn more than another that came with it, also
    where somebody comes, goes or has a prompt in between."""
    rig = Rig(runner, limits=Limits(decode_rows=rows, prefill_chunk=16, strict=True))
    how = {"max_tokens": 40, "ignore_eos": True}
    outcomes = [rig.submit((5 + kind,), **how) for kind in range(sequences)]
    for step in range(40):
        rig.step()
        if step == 7:
            outcomes.pop().cancel()
        if step in {11, 18}:
            rig.submit(_text(step, 40), max_tokens=9, ignore_eos=True)
        turns = [len(outcome.tokens) for outcome in outcomes]
        assert max(turns) - min(turns) <= 1
    assert min(turns) > 10
    rig.finish()


def test_tenants_in_turn_and_first_come_first_served(runner) -> None:
    """Of tenants that were served alike the one that came first is next, and of one tenant the
    first that came."""
    rig, order = Rig(runner, max_running=1), []
    for name in ("a1", "a2", "b1", "b2", "a3"):

        def hear(progress, name=name) -> None:
            if progress.finish:
                order.append(name)

        how = {"max_tokens": 3, "ignore_eos": True, "tenant": name[0]}
        rig.submit(_text(1, 10), listener=hear, **how)
    rig.finish()
    assert order == ["a1", "b1", "a2", "b2", "a3"]


def test_a_newcomer_is_lifted_to_the_least() -> None:
    """Not to the most: it would wait for all that others were ever served."""
    accounts = Accounts()
    for tenant in ("much", "little"):
        accounts.join(tenant)
    accounts.charge("much", 1000.0)
    accounts.charge("little", 200.0)
    accounts.join("new")
    assert accounts.served("much") > accounts.served("little") == accounts.served("new")


class Recorder:
    """A budget that gives every prompt 16 rows and writes down what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float]] = []

    def rows(self, sequences: int, decoding: int, left: int) -> int:
        return min(16, left)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        self.seen.append((plan.decode_rows, plan.prompt_rows, seconds))


def test_the_engine_keeps_to_the_budget_and_tells_it_what_steps_took(runner) -> None:
    """A prompt gets the rows that the budget says, beside what decodes, step after step."""
    rig, budget = Rig(runner, limits=Limits()), Recorder()
    rig.engine._budget = budget
    rig.submit((5,), max_tokens=30, ignore_eos=True)
    rig.step()
    rig.submit(_text(3, 50), max_tokens=2, ignore_eos=True)
    for _ in range(4):
        rig.step()
    assert [seen[:2] for seen in budget.seen] == [(1, 0), *[(1, 16)] * 3, (1, 2)]
    assert all(seconds > 0.0 for _, _, seconds in budget.seen)
    rig.finish()


def test_a_prompt_is_charged_once_and_for_what_was_computed(runner) -> None:
    """Neither what was cached of a prompt nor computing it again is put on a tenant's account."""
    runner.pool.forget()
    rig = Rig(runner, limits=CANONICAL)
    accounts = rig.engine.scheduler.accounts
    accounts.join("first")  # so that accounts are kept when their requests have ended
    accounts.join("second")
    how = {"max_tokens": 2, "ignore_eos": True}
    rig.submit(_text(1, 70), tenant="first", **how)
    rig.finish()
    assert accounts.served("first") == service(70, 2)
    rig.submit(_text(1, 70), tenant="second", **how)
    rig.finish()
    assert accounts.served("second") == service(70 - 64, 2)
    how = {"max_tokens": 140, "ignore_eos": True}
    before = accounts.served("first")
    for kind in range(2, 6):
        rig.submit(_text(kind, 100), tenant="first", **how)
    rig.finish()
    assert rig.engine.counters.preemptions > 0
    assert accounts.served("first") - before == service(4 * 100, 4 * 140)


@pytest.mark.parametrize("by", ["tenant", "priority"])
def test_whose_prompt_goes_first(runner, by) -> None:
    """Of two prompts, the one of lower priority number, and else of the tenant that was served
    less, gets the rows of the next step, though it came later."""
    runner.pool.forget()
    rig = Rig(runner, limits=CANONICAL)
    rig.engine.scheduler.accounts.join("busy")
    rig.engine.scheduler.accounts.join("idle")
    rig.engine.scheduler.accounts.charge("busy", 100.0 if by == "tenant" else 0.0)
    for kind, tenant, priority in ((1, "busy", 1), (2, "idle", 0 if by == "priority" else 1)):
        rig.submit(_text(kind, 100), max_tokens=2, tenant=tenant, priority=priority)
        rig.step()
    for _ in range(3):
        rig.step()
    computed = {g.request.tenant: g.sequence.computed for g in rig.engine.scheduler.running}
    assert computed["idle"] > computed["busy"]
    rig.finish()


def test_output_counts_twice_a_prompt(runner) -> None:
    """A tenant that was served output has had more than one that was served as long a prompt."""
    runner.pool.forget()
    rig = Rig(runner)
    accounts = rig.engine.scheduler.accounts
    for tenant, prompt, output in (("writes", 20, 60), ("reads", 60, 20)):
        accounts.join(tenant)
        rig.submit(_text(1, prompt), max_tokens=output, ignore_eos=True, tenant=tenant)
    rig.finish()
    assert accounts.served("writes") == 20 + 2 * 60
    assert accounts.served("reads") == 60 + 2 * 20


def test_places_are_not_free_while_somebody_waits_for_room(runner) -> None:
    """Where the pool is full, those that come wait, however many places there are: the bound of
    the queue holds for all of them."""
    rig = Rig(runner, max_running=20, bounds=Bounds(requests=4))
    for kind in (1, 2):
        rig.submit(_text(kind, 200), max_tokens=50, ignore_eos=True)
    rig.step()
    rig.submit(_text(3, 200), max_tokens=50, ignore_eos=True)
    rig.step()
    assert (rig.engine.num_running, rig.engine.num_waiting) == (2, 1)
    assert rig.engine.admission.backlog.places == 0
    for kind in range(3):
        rig.submit(_text(kind, 200), max_tokens=50, ignore_eos=True, tenant=str(kind))
    with pytest.raises(Overloaded):
        rig.submit(_text(4, 200), max_tokens=50, ignore_eos=True, tenant="another")
    rig.finish()


def test_prompts_and_decoding_take_turns(runner) -> None:
    """Where they cannot share steps, whoever decodes has every second one beside a long prompt."""
    rig = Rig(runner, limits=CANONICAL)
    decoding = rig.submit(_text(1, 10), max_tokens=40, ignore_eos=True)
    while not decoding.tokens:
        rig.step()
    long = rig.submit(_text(2, 150), max_tokens=2, ignore_eos=True)
    before = len(decoding.tokens)
    for _ in range(12):
        rig.step()
    assert len(decoding.tokens) - before in {5, 6, 7}
    assert not long.tokens
    rig.finish()


def test_what_was_decoded_is_not_shared_where_shapes_matter(runner) -> None:
    """Where bits depend on a step's shape, others find whole chunks of a prompt and nothing behind
    them: an answer was computed in other shapes than it would be as a part of a prompt."""
    runner.pool.forget()
    rig = Rig(runner, limits=CANONICAL)
    first = rig.submit(_text(1, 40), max_tokens=50, ignore_eos=True)
    rig.finish()
    second = rig.submit((*_text(1, 40), *first.tokens), max_tokens=2, ignore_eos=True)
    rig.finish()
    assert second.cached == 32


def test_drafts_have_room(runner) -> None:
    """Before every step each sequence has room for as many drafts as a step may have of it, or as
    could be accepted."""
    rig = Rig(runner)
    rig.submit(_text(1, 20), max_tokens=150, ignore_eos=True)
    while rig.step():
        rig.engine.scheduler.next_turn()
        for generation in rig.engine.scheduler.running:
            useful = generation.max_length - 1 - len(generation.sequence)
            assert generation.room >= min(rig.engine.limits.max_drafts, useful)
    rig.finish()


def test_what_answers_come_to_is_learnt(runner) -> None:
    """The work of a request is reckoned with as much output as others had, not with all that it
    may have."""
    rig = Rig(runner)
    drain = rig.engine.admission.drain
    assert drain.work(10, 20) == service(10, 20)
    before = drain.work(10, 200)
    rig.submit(_text(1, 10), max_tokens=12, ignore_eos=True)
    rig.finish()
    assert drain.work(10, 200) == service(10, 12) < before
    assert drain.work(10, 5) == service(10, 5)


def test_only_whole_chunks_are_found_where_shapes_matter(runner) -> None:
    """Of 48 tokens in common others take the first chunk of 32: the rest of the second would be
    computed in another shape than it has alone."""
    runner.pool.forget()
    rig = Rig(runner, limits=Limits(prefill_chunk=32, strict=True))
    common, found = _text(1, 48), []
    for kind in (2, 3):
        outcome = rig.submit((*common, *_text(kind, 40)), max_tokens=2, ignore_eos=True)
        rig.finish()
        found.append(outcome.cached)
    assert found == [0, 32]
