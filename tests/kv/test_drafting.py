"""Drafting on the verifier's context: real services, every mode, the same tokens."""

from __future__ import annotations

import pytest

from slipstream.core.layer_plan import LayerPlan
from slipstream.core.params import SamplingParams
from tests.integration.client import GREEDY, Client, request
from tests.kv.rig import drafter, verifier

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
