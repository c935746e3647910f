"""Drafting along answers counts what drafting for real would, in every kind of context."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.core.throughput import RunTally
from slipstream.engine.batch import Segment
from slipstream.engine.draws import Draws
from slipstream.engine.sequence import Sequence
from slipstream.engine.step_cost import StepCost
from slipstream.tune.costs import VerifyCost
from slipstream.tune.drafting import MAX_RUN, Drafting
from slipstream.tune.evaluate import Estimate, Evaluator
from tests.tune.conftest import PROMPTS

SKIPS = Skips(attention=frozenset({1}), mlp=frozenset({2}))


def _rows(pool, table, start, end):
    slots = table.slots[start:end]
    return torch.stack(
        [torch.stack((k[slots], v[slots])) for k, v in zip(pool.keys, pool.values, strict=True)]
    )


def _really_draft(copy, full, answer, skips, context) -> RunTally:
    """Feeds the copy its own drafts, one row at a time, and corrects it after each run."""
    table = copy.pool.allocate(len(answer.tokens))
    total, position = RunTally(), answer.num_prompt

    def fetch(start, end):
        copy.pool.enter(table, start, end)
        for pools in ((copy.pool.keys, full.pool.keys), (copy.pool.values, full.pool.values)):
            for mine, theirs in zip(*pools, strict=True):
                mine[table.slots[start:end]] = theirs[answer.table.slots[start:end]]

    with copy.loaded.skips.using(skips), torch.inference_mode():
        if context == "own":
            copy.forward([Segment(answer.tokens[: position - 1], 0, table, 0)])
        else:
            fetch(0, position - 1)
        while position < len(answer.tokens):
            most = min(MAX_RUN, len(answer.tokens) - position)
            sequence = Sequence(answer.tokens[:position], answer.num_prompt, answer.params, "")
            for _ in range(most):
                row = Segment(sequence.tokens[-1:], len(sequence) - 1, table, 1)
                sequence.append(Draws(copy.forward([row])).token(0, sequence))
            drafts = sequence.tokens[position:]
            decided = answer.tokens[position : position + most]
            right = next((i for i in range(most) if drafts[i] != decided[i]), most)
            total += RunTally.of_run(right, most)
            end = min(position + right + (right < most), len(answer.tokens))
            if context == "commit":
                fetch(position - 1, end - 1)
            elif right < most:
                # What was computed from a wrong draft is computed again.
                copy.forward(
                    [Segment(answer.tokens[position - 1 : end - 1], position - 1, table, 0)]
                )
            position = end
    copy.pool.release(table)
    return total


@pytest.mark.parametrize("context", ["own", "prompt", "commit"])
def test_counts_what_drafting_for_real_does(copy, full, answers, context) -> None:
    """Forced rows up to the first difference: the very runs of a copy that drafts by itself."""
    drafting = Drafting(copy, full, context)
    for answer in answers:
        tally = drafting.run(answer, SKIPS)
        assert tally == _really_draft(copy, full, answer, SKIPS, context)
        assert 0 < sum(tally.accepted) < tally.tokens
    assert copy.pool.num_used == 0


@pytest.mark.parametrize("context", ["own", "prompt", "commit"])
def test_the_same_weights_are_always_right(copy, full, answers, context) -> None:
    """A copy that skips nothing drafts every token of the answers."""
    for answer in answers:
        tally = Drafting(copy, full, context).run(answer, Skips())
        drafts = len(answer.tokens) - answer.num_prompt
        assert sum(tally.accepted) == tally.tokens == drafts


def test_answers_are_plain_decoding(full, answers) -> None:
    """Generated side by side, each answer is what the model draws for its prompt alone."""
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.tokens[: answer.num_prompt] == prompt.token_ids
        table = full.pool.allocate(len(answer.tokens))
        logits = full.forward(
            [Segment(answer.tokens[:-1], 0, table, len(answer.tokens) - answer.num_prompt)]
        )
        sequence = Sequence(prompt.token_ids, answer.num_prompt, answer.params, "")
        draws = Draws(logits)
        for row, decided in enumerate(answer.tokens[answer.num_prompt :]):
            assert draws.token(row, sequence) == decided
            sequence.append(decided)
        mine = _rows(full.pool, table, 0, len(answer.tokens) - 1)
        theirs = _rows(full.pool, answer.table, 0, len(answer.tokens) - 1)
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        full.pool.release(table)


def test_a_slower_device_for_the_drafter(copy, full, answers) -> None:
    """Steps that take three times as long elsewhere: the same drafts, judged by that."""

    class One:
        def get(self, *_: object):
            return copy

    verify = VerifyCost((1, 17), (0.010, 0.011))
    costs = {"native/native": asdict(StepCost(0.001, 0.0, 0.0, 4))}

    def estimated(slowdown: float) -> Estimate:
        how = {"kv_context": "own", "placement": "separate", "slowdown": slowdown}
        return [*Evaluator(full, answers, One(), verify, costs, **how).evaluate(LayerPlan())][-1]

    here, there = estimated(1.0), estimated(3.0)
    assert (here.draft_seconds, there.draft_seconds) == (0.001, 0.003)
    assert here.by_position == there.by_position
    assert here.window > there.window
    assert here.tokens_per_second > 1.5 * there.tokens_per_second
