"""Drafting on the verifier's context: real services, every mode, the same tokens."""

from __future__ import annotations

import asyncio

import pytest
import torch

from drafter_service.draft import Key
from slipstream.core.draft import Commit, Open, SetWindow
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.params import SamplingParams
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import until
from tests.kv.rig import drafter, rows_of, verifier

SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
SKIPS_MLP = LayerPlan(skip_mlp=frozenset({1}))
SKIPS_ATTENTION = LayerPlan(skip_attention=frozenset({0}))
PROMPTS = [tuple((7 * i + 3 * j) % 90 + 3 for i in range(5 + 130 * j)) for j in range(3)]

# Positions that a drafter has taken over of those that were committed: it did follow.
MANY = 100


def wait_for_commits(one, pair) -> None:
    """Six answers of 40 tokens stand still near their ends until the drafter has taken over what
    was committed."""
    lacks, counters = one.stands, one.engine.counters
    enough = counters.generated_tokens + 6 * 30

    def behind(turn) -> bool:
        late = pair.context.counters.refreshed_positions <= MANY
        return lacks(turn) or (counters.generated_tokens >= enough and late)

    one.stands = behind


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
        one.wait_for_drafts()
        if mode == "commit":
            wait_for_commits(one, pair)
        answers = await client.all(asked)
        assert [answer.tokens for answer in answers] == expected
        assert sum(answer.stats.num_draft_tokens for answer in answers) > 0
        counters = pair.context.counters
        assert pair.fallbacks == {}
        assert counters.pulls == (0 if mode == "own" else len(asked))
        assert counters.pulled_positions == (0 if mode == "own" else 2 * sum(map(len, PROMPTS)) - 6)
        assert (counters.refreshed_positions > MANY) == (mode == "commit")


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
        counters, prompt = pair.context.counters, len(PROMPTS[1]) - 1
        # The sequence is still there when both sides are looked at, however late that is.
        one.stands = lambda turn: turn.decoding and one.engine.counters.generated_tokens >= 40
        going = asyncio.create_task(client.generate(request(PROMPTS[1], max_tokens=500)))
        await until(lambda: counters.pulls == 1)
        if mode == "commit":
            await until(lambda: counters.refreshed_positions >= 30)
        else:
            await until(lambda: one.engine.counters.generated_tokens >= 40)
            (draft,) = pair.engine._drafts.values()
            await until(lambda: draft.committed >= prompt + 40 and draft.sequence.todo == 1)
        count = prompt + counters.refreshed_positions
        mine, theirs = await _contexts(one, pair, count)
        assert torch.equal(mine, theirs)
        if mode == "prompt" and plan is SKIPS_ATTENTION:
            mine, theirs = await _contexts(one, pair, prompt + 25)
            assert not torch.equal(mine, theirs)
        going.cancel()


async def test_keys_and_values_that_come_before_their_commit(make_runner) -> None:
    """What the drafter computes itself of the last token that it knows, to draft behind it, gives
    way to the verifier's, which were there before."""
    async with (
        drafter(make_runner(SKIPS_ATTENTION), "commit") as pair,
        verifier(make_runner()) as one,
        Client(one.address) as client,
    ):
        made, enough = one.engine.counters, [20]
        one.stands = lambda turn: turn.decoding and made.generated_tokens >= enough[0]
        going = asyncio.create_task(client.generate(request(PROMPTS[1], max_tokens=500)))
        await until(lambda: made.generated_tokens >= 20)
        ((number, sequence),) = one.engine.kv._running.items()
        pair.context.connect(7, one.address)
        opened = Open(number, PROMPTS[1], len(PROMPTS[1]), GREEDY, 0, 900)
        pair.engine.obey(7, [opened])

        def came(length: int) -> bool:
            unknown = [load.shards[0].unknown for load in pair.context._loads.values()]
            return any(prefix.length == length for each in unknown for prefix in each)

        for enough[0] in (20, 40):
            await until(lambda: made.generated_tokens >= enough[0])
            # Of the last token the verifier has none either.
            known = len(sequence) - 1
            await until(lambda known=known: came(known))
            draft = pair.engine._drafts[Key(7, number)]
            tokens = tuple(sequence.tokens[draft.committed : known])
            commit = Commit(number, sequence.chain.at(draft.committed), tokens)
            pair.engine.obey(7, [commit, SetWindow(number, 1)])
            await until(lambda draft=draft, known=known: len(draft.sequence) == known + 1)
            pair.engine.obey(7, [SetWindow(number, 0)])
        mine, theirs = await _contexts(one, pair, known)
        assert torch.equal(mine, theirs)
        going.cancel()
        pair.engine.disconnect(7)
        await pair.context.disconnect(7)


async def test_another_dtype(make_runner) -> None:
    """A bfloat16 drafter of a float32 verifier holds its keys and values, rounded."""
    async with (
        drafter(make_runner(SKIPS_MLP, dtype="bfloat16")) as pair,
        verifier(make_runner(), pair.address) as one,
        Client(one.address) as client,
    ):
        one.stands = lambda turn: turn.decoding and one.engine.counters.generated_tokens >= 4
        going = asyncio.create_task(client.generate(request(PROMPTS[2], max_tokens=500)))
        await until(lambda: pair.context.counters.pulls == 1)
        mine, theirs = await _contexts(one, pair, len(PROMPTS[2]) - 1)
        assert mine.dtype == torch.bfloat16
        assert torch.equal(mine, theirs.to(torch.bfloat16))
        going.cancel()
