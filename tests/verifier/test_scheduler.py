"""The scheduler between two steps: who is charged for what, and whose turn it is."""

from __future__ import annotations

import pytest

from slipstream.core.errors import Overloaded
from tests.verifier.rig import VOCAB, Rig
from verifier_service.admission import Bounds
from verifier_service.fairness import service
from verifier_service.generation import Finish
from verifier_service.plan import Limits

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
    for tenant, priority in (("busy", 1), ("idle", 0 if by == "priority" else 1)):
        rig.submit(_text(1, 100), max_tokens=2, tenant=tenant, priority=priority)
    # Both have their places by now.
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
    assert rig.engine.admission.places == 0
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
