"""Drafting on the verifier's context: real services, every mode, the same tokens."""

from __future__ import annotations

import asyncio

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.core.params import SamplingParams
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import until
from tests.kv.rig import drafter, rows_of, verifier

SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
SKIPS_MLP = LayerPlan(skip_mlp=frozenset({1}))
SKIPS_ATTENTION = LayerPlan(skip_attention=frozenset({0}))
PROMPTS = [tuple((7 * i + 3 * j) % 90 + 3 for i in range(5 + 130 * j)) for j in range(3)]


@pytest.mark.parametrize("mode", ["own", "prompt", "commit"])
@pytest.mark.parametrize("plan", [SKIPS_MLP, SKIPS_ATTENTION], ids=["mlp", "attention"])
async def test_the_same_tokens(make_runner, mode, plan) -> None:
    """With each context and either skipped sublayer, at temperature 0 and 1: plain decoding's."""
    asked = [
        request(prompt, params, max_tokens=40) for prompt in PROMPTS for params in (GREEDY, SAMPLED)
    ]
    async with (
        drafter(make_runner(plan), mode) as pair,
        verifier(make_runner(), pair.address) as one,
        Client(one.address) as client,
    ):
        plain = [
            request(prompt, params, max_tokens=40, speculative=False)
            for prompt in PROMPTS
            for params in (GREEDY, SAMPLED)
        ]
        expected = [answer.tokens for answer in await client.all(plain)]
        answers = await client.all(asked)
        assert [answer.tokens for answer in answers] == expected
        assert sum(answer.stats.num_draft_tokens for answer in answers) > 0
        counters = pair.context.counters
        assert pair.fallbacks == {}
        assert counters.pulls == (0 if mode == "own" else len(asked))
        assert counters.pulled_positions == (0 if mode == "own" else 2 * sum(map(len, PROMPTS)) - 6)
        assert (counters.refreshed_positions > 100) == (mode == "commit")


async def _contexts(one, pair, count: int):
    """The first `count` positions on both sides, at one time each."""

    def of_verifier():
        (sequence,) = one.engine.kv._running.values()
        return rows_of(one.engine.runner, sequence.table, layers, 0, count).clone()

    def of_drafter():
        (draft,) = pair.engine._drafts.values()
        return rows_of(pair.engine.runner, draft.sequence.table, layers, 0, count).clone()

    layers = pair.engine.runner.loaded.kv_layers
    mine = await asyncio.wrap_future(pair.engine.call(of_drafter))
    return mine, await asyncio.wrap_future(one.engine.call(of_verifier))


@pytest.mark.parametrize("mode", ["prompt", "commit"])
@pytest.mark.parametrize("plan", [SKIPS_MLP, SKIPS_ATTENTION], ids=["mlp", "attention"])
async def test_the_drafters_context_is_the_verifiers(make_runner, mode, plan) -> None:
    """Bit for bit: the prompt's, and with `commit` what was taken over since."""
    own = make_runner()
    async with (
        drafter(make_runner(plan), mode) as pair,
        verifier(own, pair.address) as one,
        Client(one.address) as client,
    ):
        going = asyncio.create_task(client.generate(request(PROMPTS[1], max_tokens=500)))
        counters, prompt = pair.context.counters, len(PROMPTS[1]) - 1
        await until(lambda: counters.pulls == 1)
        if mode == "commit":
            await until(lambda: counters.refreshed_positions >= 30)
        else:
            await until(lambda: one.engine.counters.generated_tokens >= 30)
        count = prompt + counters.refreshed_positions
        mine, theirs = await _contexts(one, pair, count)
        assert torch.equal(mine, theirs)
        if mode == "prompt" and plan is SKIPS_ATTENTION:
            mine, theirs = await _contexts(one, pair, prompt + 25)
            assert not torch.equal(mine, theirs)
        going.cancel()


async def test_another_dtype(make_runner) -> None:
    """A bfloat16 drafter of a float32 verifier holds its keys and values, rounded."""
    async with (
        drafter(make_runner(SKIPS_MLP, dtype="bfloat16")) as pair,
        verifier(make_runner(), pair.address) as one,
        Client(one.address) as client,
    ):
        going = asyncio.create_task(client.generate(request(PROMPTS[2], max_tokens=500)))
        await until(lambda: pair.context.counters.pulls == 1)
        mine, theirs = await _contexts(one, pair, len(PROMPTS[2]) - 1)
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, theirs.to(torch.bfloat16))
        going.cancel()
