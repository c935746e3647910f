"""plan_step: who gets rows in a step, and how many."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import cast

import pytest

from slipstream.core.draft import Proposal
from slipstream.core.params import StopConditions
from slipstream.engine.kv_pool import BlockTable
from tests.verifier.rig import GREEDY
from verifier_service.generation import Generation, GenerationRequest
from verifier_service.plan import Budget, Limits, StepPlan, Work, next_turn
from verifier_service.plan import plan_step as plan_turn


def at(number: int, length: int, computed: int, drafts: int = 0) -> Generation:
    """A running generation of `length` tokens, `computed` of them in the pool."""
    prompt = tuple(range(length))
    request = GenerationRequest(
        "r", prompt, GREEDY, StopConditions(100), True, None, lambda _: None
    )
    generation = Generation(number, request, "", frozenset(), length + 100)
    generation.sequence.table = cast("BlockTable", SimpleNamespace(capacity=length + 100))
    generation.sequence.computed = computed
    chain = generation.sequence.chain
    generation.propose(Proposal(number, chain.at(length), tuple(range(drafts))))
    return generation


def plan_step(
    running, limits: Limits, prefill_next: bool = True, budget: Budget = lambda _, __, left: left
) -> list[Work]:
    """The plan where every sequence gets as many drafts as there are rows for, evenly."""

    def evenly(decoding, rows: int, most: int) -> list[tuple[int, ...]]:
        each = min(most, max(0, rows - len(decoding)) // len(decoding))
        return [g.drafts(each) for g in decoding]

    turn = next_turn(running, limits, prefill_next, lambda g: g.rank)
    return list(plan_turn(turn, limits, evenly, budget).work)


def shape(work) -> list[tuple[int, int, int, int]]:
    """(number, first position, rows, wanted logits) of each piece of work."""
    return [
        (w.generation.number, w.segment.position, len(w.segment.tokens), w.segment.num_logits)
        for w in work
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_running(strict) -> None:
    """No work without sequences."""
    assert plan_step([], Limits(strict=strict), True) == []


def test_prompt_is_cut_at_fixed_borders() -> None:
    """Canonical chunks end at multiples of their size, and only the last one wants logits."""
    limits = Limits(prefill_chunk=64, strict=True)
    assert shape(plan_step([at(1, 150, 0)], limits)) == [(1, 0, 64, 0)]
    assert shape(plan_step([at(1, 150, 64)], limits)) == [(1, 64, 64, 0)]
    assert shape(plan_step([at(1, 150, 128)], limits)) == [(1, 128, 22, 1)]
    # Wherever a sequence starts from, it comes back to the same borders.
    assert shape(plan_step([at(1, 150, 10)], limits)) == [(1, 10, 54, 0)]
    assert shape(plan_step([at(1, 128, 64)], limits)) == [(1, 64, 64, 1)]


def test_what_follows_a_prompt_is_computed_again_in_the_shapes_it_had() -> None:
    """Canonical: after a preemption the prompt's last chunk ends where it ended, and what was
    decoded comes in blocks of no more rows than a decoding step has."""
    limits, resumed = Limits(prefill_chunk=64, strict=True), at(1, 150, 0)
    resumed.sequence.num_prompt = 80
    shapes = []
    while resumed.sequence.todo > 1:
        work = plan_step([resumed], limits)
        shapes += shape(work)
        resumed.sequence.computed = work[0].segment.kv_length
    assert shapes == [
        (1, 0, 64, 0),
        (1, 64, 16, 0),
        (1, 80, 32, 0),
        (1, 112, 32, 0),
        (1, 144, 6, 1),
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_prompts_share_what_decoding_leaves(strict) -> None:
    """A step carries every decoding sequence and pieces of several prompts, in order, within the
    budget and the most rows of a step; in strict mode within those that agree."""
    running = [at(1, 100, 0), at(2, 30, 29), at(3, 90, 0), at(4, 40, 39, drafts=3)]
    limits = Limits(step_rows=600, strict=strict, mixed_rows=128 if strict else 0)
    most = 128 if strict else 600
    asked = []

    def budget(_: int, rows: int, left: int) -> int:
        asked.append((rows, left))
        return left

    work = plan_step(running, limits, budget=budget)
    decoding = [(2, 29, 1, 1), (4, 39, 4, 4)]
    third = (3, 0, 23, 0) if strict else (3, 0, 90, 1)
    assert shape(work) == [*decoding, (1, 0, 100, 1), third]
    assert asked == [(5, most - 5)]
    assert [w.drafts for w in work] == [(), (0, 1, 2), (), ()]
    assert shape(plan_step(running, limits, budget=lambda *_: 60)) == [*decoding, (1, 0, 60, 0)]


def test_a_plan_reads_as_one_line() -> None:
    """The plan of a step says who runs, with how many drafts, and which positions of prompts."""
    work = plan_step([at(7, 100, 64), at(2, 30, 29), at(4, 40, 39, drafts=3)], Limits())
    assert str(StepPlan(tuple(work), 512)) == (
        "41 of 512 rows, decoding #2 #4+3, prompts #7[64:100]"
    )
    assert str(StepPlan((), 64)) == "0 of 64 rows, decoding none, prompts none"


def test_prompts_progress_however_many_decode() -> None:
    """Where sequences alone would fill a step, some wait a turn, so that prompts have rows."""
    running = [*(at(n, 20, 19) for n in range(90)), at(99, 500, 0)]
    limits = Limits(strict=True, mixed_rows=64)
    work = plan_step(running, limits)
    assert sum(len(w.segment.tokens) for w in work) == 64
    assert shape(work)[-1] == (99, 0, 16, 0)


@pytest.mark.parametrize("strict", [False, True])
def test_prompts_progress_however_many_drafts_there_are(strict) -> None:
    """Drafts that would fill a step leave a prompt its rows; with no prompt they have all."""
    decoding = [at(n, 20, 19, drafts=3) for n in range(64)]
    limits = Limits.of(strict=strict, exact_rows=256, step_rows=256, prefill_chunk=256)
    work = plan_step([*decoding, at(99, 500, 0)], limits)
    assert shape(work)[-1][:2] == (99, 0)
    assert shape(work)[-1][2] >= 16
    assert sum(len(w.segment.tokens) for w in work) <= 256
    assert sum(len(w.segment.tokens) for w in plan_step(decoding, limits)) == 256


@pytest.mark.parametrize("prefill_next", [False, True])
def test_strict_never_mixes(prefill_next) -> None:
    """Strict: a prompt has a step for itself, and takes turns with those that decode."""
    running = [at(1, 100, 0), at(2, 30, 29), at(3, 90, 0), at(4, 40, 39)]
    work = plan_step(running, Limits(prefill_chunk=64, strict=True), prefill_next)
    assert shape(work) == ([(1, 0, 64, 0)] if prefill_next else [(2, 29, 1, 1), (4, 39, 1, 1)])


@pytest.mark.parametrize("prefill_next", [False, True])
def test_strict_does_not_wait_for_turns(prefill_next) -> None:
    """Strict: where only one sort of work is there, it runs, whoever's turn it is."""
    limits = Limits(strict=True)
    assert len(plan_step([at(1, 30, 0)], limits, prefill_next)) == 1
    assert len(plan_step([at(1, 30, 29)], limits, prefill_next)) == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 16, 17, 32, 33, 60])
def test_row_budget(count, strict) -> None:
    """Rows of decoding stay within the budget; drafts share what plain rows leave."""
    running = [at(n, 20, 19, drafts=12) for n in range(count)]
    limits = Limits(decode_rows=32, max_drafts=8, strict=strict)
    work = plan_step(running, limits, False)
    rows = sum(len(w.segment.tokens) for w in work)
    assert len(work) == (min(count, 32) if strict else count)
    assert rows <= max(32, count)
    assert all(len(w.drafts) == min(8, max(0, 32 - len(work)) // len(work)) for w in work)
    assert [w.generation.number for w in work] == list(range(len(work)))
    assert all(w.segment.num_logits == len(w.segment.tokens) for w in work)


def test_strict_takes_turns_beyond_the_budget() -> None:
    """Strict: sequences that found no row are first in the next step, so none waits for ever."""
    running = [at(n, 20, 19) for n in range(50)]
    limits = Limits(decode_rows=32, strict=True)
    served: list[int] = []
    turns = itertools.count(1)
    for _ in range(3):
        work = plan_step(running, limits, False)
        for item in work:
            item.generation.turn = next(turns)
        served += [w.generation.number for w in work]
    assert served[:50] == list(range(50))
    # Nobody is left out of two steps in a row.
    assert set(served[:64]) == set(served[32:]) == set(range(50))


def test_last_token_of_a_prompt_decodes() -> None:
    """A prompt with one position left to compute is a decoding sequence, drafts and all."""
    assert shape(plan_step([at(1, 65, 64, drafts=2)], Limits(strict=True), True)) == [(1, 64, 3, 3)]
