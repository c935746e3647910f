"""A drafter in shards that fetches its context: the drafts of the one in one piece, always."""

from __future__ import annotations

import asyncio

import pytest

from drafter_service.draft import Key
from slipstream.core.draft import Commit, Open, SetWindow
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.params import SamplingParams
from slipstream.core.prefix import PrefixChain
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import until
from tests.kv.fake_holder import fake_holder
from tests.kv.rig import drafter, row, verifier
from tests.kv.test_drafting import MANY, wait_for_commits

SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
# The first shard of the second plan keeps no attention, and has no use for any context.
PLANS = {
    "mlp": LayerPlan(skip_mlp=frozenset({0, 1})),
    "attention": LayerPlan(skip_attention=frozenset({0})),
}
PROMPTS = [tuple((7 * i + 3 * j) % 90 + 3 for i in range(5 + 130 * j)) for j in range(3)]
MODES = ["own", "prompt", "commit"]
VERIFIER = 7
# More than two blocks in each half.
TOKENS = 70


def shards(make_runner, plan):
    return [make_runner(plan, shard=(i, 2)) for i in range(2)]


async def _drafts(pair, one, number: int, tokens: list[int], params: SamplingParams):
    """What is drafted on the first half of a running sequence, and then on all of it."""
    engine, half = pair.engine, (len(PROMPTS[2]) + len(tokens)) // 2
    key = Key(VERIFIER, number)

    def ahead() -> list[int]:
        draft = engine._drafts[key]
        return draft.sequence.tokens[draft.committed :]

    def drafted() -> bool:
        return len(ahead()) >= 12 and not engine._drafts[key].in_flight

    chain = PrefixChain(engine.runner.loaded.fingerprint, tokens)
    engine.obey(VERIFIER, [Open(number, tuple(tokens[:half]), len(PROMPTS[2]), params, 12, 900)])
    await until(lambda: key in engine._drafts and drafted())
    first = ahead()
    engine.obey(
        VERIFIER,
        [SetWindow(number, 0), Commit(number, chain.at(half), tuple(tokens[half:]))],
    )
    # What was committed comes before drafting goes on, or when that was depends on the clock.
    counters, rest = pair.context.counters, len(tokens) - half
    if pair.context.mode == "commit":
        await until(lambda: counters.refreshed_positions == rest)
    engine.obey(VERIFIER, [SetWindow(number, 12)])
    await until(drafted)
    return first, ahead()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
async def test_the_drafts_of_the_whole(make_runner, plan, params) -> None:
    """Each context gives drafts of its own, and those are the same in one piece and in two; what is
    committed without the drafter's help goes beyond the room that its shards had taken."""
    own = make_runner()
    async with verifier(own) as one, Client(one.address) as client:
        done = one.engine.counters
        # Its text stands still then, and its keys and values are given away all the same.
        one.engine.speculation.patience = lambda _: 1.0 if done.generated_tokens >= TOKENS else 0.0
        asked = request(PROMPTS[2], params, max_tokens=600)
        going = asyncio.create_task(client.generate(asked))
        await until(lambda: done.generated_tokens >= TOKENS)
        (number,) = one.engine.kv._running
        tokens = one.engine.kv._running[number].tokens
        got = {}
        for mode in MODES:
            for name, made in (
                ("whole", drafter(make_runner(plan), mode)),
                ("row", row(shards(make_runner, plan), mode)),
            ):
                async with made as pair:
                    pair.context.connect(VERIFIER, one.address)
                    got[mode, name] = await _drafts(pair, one, number, tokens, params)
                    assert pair.fallbacks == {}
                    pair.engine.disconnect(VERIFIER)
                    await pair.context.disconnect(VERIFIER)
            assert got[mode, "row"] == got[mode, "whole"]
        going.cancel()
    assert len({str(got[mode, "whole"]) for mode in MODES}) == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
async def test_the_same_tokens(make_runner, mode, plan) -> None:
    """Six sequences at once, at temperature 0 and 1: plain decoding's tokens, all of them fetched
    by both shards, and what the shards keep is what the unsharded drafter would pull."""
    prompts = [(prompt, params) for prompt in PROMPTS for params in (GREEDY, SAMPLED)]
    async with (
        row(shards(make_runner, plan), mode) as pair,
        verifier(make_runner(), pair.address) as one,
        Client(one.address) as client,
    ):
        plain = [request(p, how, max_tokens=40, speculative=False) for p, how in prompts]
        expected = [answer.tokens for answer in await client.all(plain)]
        asked = [request(p, how, max_tokens=40) for p, how in prompts]
        one.wait_for_drafts()
        if mode == "commit":
            wait_for_commits(one, pair)
        answers = await client.all(asked)
        assert [answer.tokens for answer in answers] == expected
        assert sum(answer.stats.num_draft_tokens for answer in answers) > 0
        counters, fetched = pair.context.counters, 2 * sum(map(len, PROMPTS)) - 6
        assert pair.fallbacks == {}
        assert counters.pulls == (0 if mode == "own" else 6)
        assert counters.pulled_positions == (0 if mode == "own" else fetched)
        layers = 2 - len(plan.skip_attention)
        size = fetched * layers * 2 * 2 * 8 * 4
        assert counters.pulled_bytes == (0 if mode == "own" else size)
        assert (counters.refreshed_positions > MANY) == (mode == "commit")


class _Other:
    """Makes the second shard fetch from another holder than the first."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, pair) -> None:
        stage = pair.context._others
        fetch = stage.fetch
        stage.fetch = lambda draft, address, want: fetch(draft, self.address, want)


@pytest.mark.parametrize(
    ("how", "reason", "kept"),
    [
        ({"breaks_after": 0}, "cut", 0),
        ({"breaks_after": 5}, "cut", 40),
        ({"pace": 30.0}, "slow", 8),
        ({"handle": {"head_dim": 16}}, "model_mismatch", 0),
        ({"answer": {"data": bytes(64)}}, "failed", 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("which", [0, 1])
async def test_one_shard_fails_all_compute(make_runner, which, how, reason, kept) -> None:
    """Either shard's fetch breaks, crawls or carries rubbish: what both have counts, both compute
    the rest, the reason is counted once, and the drafts are those of a context cut there."""
    own, prompt, plan = make_runner(), PROMPTS[1], PLANS["mlp"]
    may_break = asyncio.Event()
    command = Open(1, prompt, len(prompt), GREEDY, 12, 500)

    async def drafts(pair) -> list[int]:
        pair.engine.obey(VERIFIER, [command])
        key = Key(VERIFIER, 1)
        await until(lambda: key in pair.engine._drafts)
        draft = pair.engine._drafts[key]
        if reason == "slow":
            # Its patience begins with the verifier's first commit, which changes nothing here.
            await until(lambda: pair.context._loads[key].taken == kept)
            load = pair.context._loads[key]
            pair.engine.post(lambda: pair.context._too_slow(load))
        if reason == "cut":
            # Neither shard fails before both have what is to be kept.
            await until(lambda: pair.context._loads[key].taken == kept)
            may_break.set()
        await until(lambda: len(draft.sequence) == len(prompt) + 12 and not draft.in_flight)
        pair.engine.disconnect(VERIFIER)
        await pair.context.disconnect(VERIFIER)
        assert pair.fallbacks == {reason: 1}
        assert pair.context.counters.pulled_positions == kept
        assert pair.engine.counters.prefilled_positions == len(prompt) - kept
        return draft.sequence.tokens[len(prompt) :]

    async with (
        fake_holder(own, tokens=prompt, may_break=may_break, **how) as (_, bad),
        fake_holder(own, tokens=prompt) as (_, good),
    ):
        async with drafter(make_runner(plan)) as pair:
            pair.context.connect(VERIFIER, bad)
            expected = await drafts(pair)
        async with row(shards(make_runner, plan)) as pair:
            may_break.clear()
            pair.context.connect(VERIFIER, (good, bad)[1 - which])
            _Other((good, bad)[which])(pair)
            assert await drafts(pair) == expected
