"""PromptBudget: what it learns of steps with prompts, and of which steps it learns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from verifier_service.budget import PromptBudget
from verifier_service.plan import LEAST_PROMPT_ROWS, Limits, StepPlan


def _cost(rows: int) -> float:
    return 0.010 + 0.0005 * rows


def _step(budget: PromptBudget, decoding: int, prompts: int, slower: float, times: int = 1) -> None:
    """Steps that took so many times as long as their rows let expect."""
    rows = decoding + prompts
    work = [None] * (decoding + (prompts > 0))
    plan = SimpleNamespace(rows=rows, decode_rows=decoding, prompt_rows=prompts, work=work)
    for _ in range(times):
        budget.observe(cast("StepPlan", plan), slower * _cost(rows))


def test_follows_what_steps_with_prompts_take() -> None:
    """Dearer than their rows let expect, as far into a long prompt: fewer rows; and back."""
    budget = PromptBudget(_cost, lambda: 0.0, 2.0)
    # 8 rows take 0.014 s, and 36 of them 0.028.
    assert budget.rows(8, 8, 512) in {27, 28}
    _step(budget, 8, 20, slower=1.2, times=40)
    assert budget.rows(8, 8, 512) in {17, 18}
    _step(budget, 8, 20, slower=1.0, times=40)
    assert budget.rows(8, 8, 512) in {27, 28}


@pytest.mark.parametrize(("decoding", "prompts"), [(8, 0), (0, 100)])
def test_learns_only_where_both_are_in_a_step(decoding, prompts) -> None:
    """A slow step of prompts alone, or without any, says nothing of what prompts cost beside."""
    budget = PromptBudget(_cost, lambda: 0.0, 2.0)
    _step(budget, decoding, prompts, slower=1.2, times=40)
    assert budget.rows(8, 8, 512) in {27, 28}


def test_a_cost_that_is_taken_for_twice_what_it_is_stretches_no_step_further() -> None:
    """What steps without prompts took bounds those with, whatever the cost model says of both."""
    budget = PromptBudget(lambda rows: 2.0 * _cost(rows), lambda: 0.0, 2.0)
    _step(budget, 8, 0, slower=1.0, times=100)
    for _ in range(40):
        prompts = budget.rows(8, 8, 512)
        _step(budget, 8, prompts, slower=1.0)
    assert _cost(8 + budget.rows(8, 8, 512)) <= 2.0 * _cost(8)
    assert budget.rows(8, 8, 512) in {27, 28}


def test_more_drafts_beside_prompts_do_not_lengthen_the_step() -> None:
    """Sequences that take 40 rows beside a prompt, 8 before it came: the step is bounded by what
    they were used to; when there are more sequences, by what these would take."""
    budget = PromptBudget(_cost, lambda: 0.0, 2.0)
    _step(budget, 8, 0, slower=1.0, times=100)
    assert _cost(40 + budget.rows(8, 40, 512)) <= max(2.0 * _cost(8), _cost(40 + LEAST_PROMPT_ROWS))
    assert _cost(16 + budget.rows(16, 16, 512)) == pytest.approx(2.0 * _cost(16), abs=0.001)


def test_a_stall_is_soon_forgotten() -> None:
    """One step that took a hundred times as long costs prompts their rows for a few steps only."""
    budget = PromptBudget(_cost, lambda: 0.0, 2.0)
    _step(budget, 8, 20, slower=100.0)
    assert budget.rows(8, 8, 512) == LEAST_PROMPT_ROWS
    _step(budget, 8, 20, slower=1.0, times=6)
    assert budget.rows(8, 8, 512) > LEAST_PROMPT_ROWS


@pytest.mark.parametrize(
    ("strict", "exact_rows", "step_rows", "canonical", "decode_rows"),
    [
        (True, 32, 512, True, 32),
        (True, 64, 512, False, 64),
        (True, 256, 512, False, 256),
        (True, 256, 128, False, 128),
        (False, 0, 512, False, 512),
    ],
)
def test_limits_follow_from_what_agrees(
    strict, exact_rows, step_rows, canonical, decode_rows
) -> None:
    """Strict steps have no more rows than agree; where those are few, prompts are alone."""
    limits = Limits.of(strict=strict, exact_rows=exact_rows, step_rows=step_rows, prefill_chunk=256)
    assert (limits.canonical, limits.decode_rows) == (canonical, decode_rows)
