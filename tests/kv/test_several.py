"""Verifiers that share a drafter, and one that has a choice of drafters: the same tokens always."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from slipstream.core.layer_plan import LayerPlan
from slipstream.core.params import SamplingParams
from tests.integration.client import GREEDY, Client, drafter_status, request
from tests.integration.processes import until
from tests.kv.rig import drafter, row, verifier

SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
PLAN = LayerPlan(skip_mlp=frozenset({1}))
# Of two verifiers; the sequences of both have the numbers 1, 2, ..., and other texts.
PROMPTS = [[tuple((7 * i + 3 * j + k) % 90 + 3 for i in range(9 + 60 * j)) for j in range(3)]
           for k in (0, 40)]  # fmt: skip


def asking(prompts, **how):
    return [
        request(p, params, max_tokens=40, **how) for p in prompts for params in (GREEDY, SAMPLED)
    ]


async def accepting(one, client, asked, expected, answers=()) -> None:
    """Some of the drafter's drafts are taken, not only the verifier's own guesses: in `answers`, or
    else in later ones, of a slower one. Which come in time depends on how busy the machine is."""
    for _ in range(7):
        stats = [answer.stats for answer in answers]
        if any(each.num_accepted_tokens > each.num_accepted_guess_tokens for each in stats):
            return
        answers = await client.all(asked)
        assert [answer.tokens for answer in answers] == expected
        one.pause *= 2
    raise AssertionError("no draft was ever accepted")


@pytest.mark.parametrize("mode", ["own", "prompt", "commit"])
@pytest.mark.parametrize("shards", [1, 2])
async def test_two_verifiers_on_one_drafter(make_runner, mode, shards) -> None:
    """Their sequences have the same numbers: each has its own tokens, its own context and drafts
    of its own, and neither is left without."""
    if shards == 1:
        one_drafter = drafter(make_runner(PLAN), mode)
    else:
        one_drafter = row([make_runner(PLAN, shard=(i, 2)) for i in range(2)], mode)
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(one_drafter)
        ones, clients, expected = [], [], []
        for number, prompts in enumerate(PROMPTS):
            name = f"life {number}"
            each = verifier(make_runner(), pair.address, incarnation=name)
            ones.append(one := await stack.enter_async_context(each))
            clients.append(await stack.enter_async_context(Client(one.address)))
            answers = await clients[-1].all(asking(prompts, speculative=False))
            expected.append([answer.tokens for answer in answers])
            one.wait_for_drafts()
        status = await drafter_status(pair.address)
        assert status.verifiers == 2
        asked = list(zip(clients, PROMPTS, strict=True))
        found = await asyncio.gather(*(client.all(asking(prompts)) for client, prompts in asked))
        for answers, tokens in zip(found, expected, strict=True):
            assert [answer.tokens for answer in answers] == tokens
        assert pair.fallbacks == {}
        pulled = 2 * sum(len(p) - 1 for prompts in PROMPTS for p in prompts)
        assert pair.context.counters.pulled_positions == (0 if mode == "own" else pulled)
        for one, client, prompts, tokens, answers in zip(
            ones, clients, PROMPTS, expected, found, strict=True
        ):
            await accepting(one, client, asking(prompts), tokens, answers)


async def test_one_verifier_leaves_the_other(make_runner) -> None:
    """When one of two ends, what was open for it is freed on the drafter; the other goes on."""
    async with (
        drafter(make_runner(PLAN)) as pair,
        verifier(make_runner(), pair.address) as one,
        Client(one.address) as client,
    ):
        whole = request(PROMPTS[0][1], SAMPLED, max_tokens=120)
        expected = (await client.generate(whole)).tokens
        # Neither is over before the drafter has both.
        both = asyncio.Event()
        one.stands = lambda turn: turn.decoding and not both.is_set()
        going = asyncio.create_task(client.generate(whole))
        other = verifier(make_runner(), pair.address, incarnation="the other")
        async with other as two, Client(two.address) as another:
            two.stands = lambda turn: turn.decoding
            leaving = asyncio.create_task(another.generate(whole))
            await until(lambda: pair.engine.num_open == 2)
            leaving.cancel()
        both.set()
        await until(lambda: len(pair.outboxes) == 1)
        answer = await going
        assert answer.tokens == expected
        await accepting(one, client, [whole], [expected], [answer])
        await until(lambda: pair.engine.num_open == 0)


async def test_the_second_of_two_drafters(make_runner) -> None:
    """Of two drafters the one of the same zone; it goes away in mid-generation, and the other one
    goes on with what is open. The tokens are the same, and who drafts is told."""
    async with drafter(make_runner(PLAN), zone="there") as far, AsyncExitStack() as near_ends:
        near = await near_ends.enter_async_context(drafter(make_runner(PLAN), zone="here"))
        both = f"{far.address},{near.address}"
        async with (
            verifier(make_runner(), both, zone="here") as one,
            Client(one.address) as client,
        ):
            assert one.link.address == near.address
            status = await drafter_status(near.address)
            assert (status.zone, status.verifiers) == ("here", 1)
            asked = request(PROMPTS[0][2], SAMPLED, max_tokens=120)
            expected = (await client.generate(asked)).tokens
            # It is not over before the other drafter has it.
            one.stands = lambda turn: turn.decoding and not far.engine.num_open
            going = asyncio.create_task(client.generate(asked))
            await until(lambda: near.engine.num_open == 1)
            await near_ends.aclose()
            await until(lambda: one.link.connected and one.link.address == far.address)
            assert (await client.status()).drafter_address == far.address
            assert (await going).tokens == expected
            await accepting(one, client, [asked], [expected])
