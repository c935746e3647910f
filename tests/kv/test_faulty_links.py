"""Verifier and drafter over a network with faults: the same tokens, and a new stream."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import pytest

from slipstream.bench.faults import FaultProxy
from slipstream.core.errors import SlipstreamError
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.prefix import PrefixChain
from slipstream.wire.kv_client import KvClient
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import until
from tests.kv.rig import drafter, row, verifier

SKIPS_MLP = LayerPlan(skip_mlp=frozenset({1}))
PROMPT = tuple((5 * i) % 90 + 3 for i in range(200))
TOKENS = 60
# In the midst of a message: what is hit does not depend on how long a frame seems.
INSIDE = 30


def _lose(proxy):
    proxy.refuse()
    proxy.cut()


FAULTS = {
    "reset": lambda proxy: proxy.cut("reset"),
    "end": lambda proxy: proxy.cut("end"),
    "gone": _lose,
    "half-open": lambda proxy: proxy.freeze(),
    "half-open for a while": lambda proxy: proxy.freeze(0.2),
    "deaf": lambda proxy: proxy.freeze(direction="outward"),
    "mute": lambda proxy: proxy.freeze(direction="homeward"),
    "damaged commands": lambda proxy: proxy.corrupt_once(INSIDE, "outward"),
    "damaged drafts": lambda proxy: proxy.corrupt_once(INSIDE, "homeward"),
}


def lost(caplog) -> bool:
    """Whether the verifier has lost its drafter."""
    return any("lost: " in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_link_fails_in_mid_answer(make_runner, caplog, fault) -> None:
    """The answer goes on without drafts, and is plain decoding's; when the network is well again,
    so is drafting, over a new stream."""
    own = make_runner()
    async with (
        drafter(make_runner(SKIPS_MLP), "own") as pair,
        FaultProxy(pair.address, seed=5) as proxy,
        verifier(own, await proxy.start(), pause=0.0) as one,
        Client(one.address) as client,
    ):
        asked = request(PROMPT, GREEDY, max_tokens=TOKENS)
        plain = request(PROMPT, GREEDY, max_tokens=TOKENS, speculative=False)
        expected = (await client.generate(plain)).tokens

        async def break_link(tokens):
            if len(tokens) > 15 and not broken.is_set():
                broken.set()
                FAULTS[fault](proxy)

        # Drafts come before the link breaks, and that is before the end.
        broken, made = asyncio.Event(), one.engine.counters
        one.wait_for_drafts()
        cold, nearly_all = one.stands, made.generated_tokens + TOKENS - 20
        one.stands = lambda turn: (
            not broken.is_set() and (cold(turn) or made.generated_tokens >= nearly_all)
        )
        answer = await client.generate(asked, after=break_link)
        assert broken.is_set()
        assert answer.tokens == expected
        assert answer.stats.num_draft_tokens > 0

        async def drafting_again():
            if not lost(caplog) and "damaged" in fault:
                # It hit a frame that says nothing.
                FAULTS[fault](proxy)
            # The slower it is, the sooner drafts are there.
            one.pause = min(0.05, one.pause + 0.002)
            again = await client.generate(asked)
            assert again.tokens == expected
            return lost(caplog) and again.stats.num_draft_tokens > 0

        if "damaged" not in fault:
            proxy.heal()
        await until(drafting_again)


@pytest.mark.parametrize("direction", ["outward", "homeward"])
async def test_damage_between_two_shards(make_runner, caplog, direction) -> None:
    """The row comes apart and together again; meanwhile and afterwards tokens are the same."""
    shards = [make_runner(SKIPS_MLP, shard=(place, 2)) for place in (0, 1)]
    async with (
        FaultProxy("", seed=8) as proxy,
        row(shards, "own", through=proxy) as pair,
        verifier(make_runner(), pair.address, pause=0.0) as one,
        Client(one.address) as client,
    ):
        asked = request(PROMPT, GREEDY, max_tokens=TOKENS)
        plain = request(PROMPT, GREEDY, max_tokens=TOKENS, speculative=False)
        expected = (await client.generate(plain)).tokens

        async def drafting_again():
            if not lost(caplog):
                proxy.corrupt_once(INSIDE, direction)
            # The slower it is, the sooner drafts are there.
            one.pause = min(0.05, one.pause + 0.002)
            again = await client.generate(asked)
            assert again.tokens == expected
            return lost(caplog) and again.stats.num_draft_tokens > 0

        await until(drafting_again)


async def test_one_bit_anywhere(make_runner) -> None:
    """Whichever bit of the conversation is flipped, in either direction: the same tokens."""
    async with (
        drafter(make_runner(SKIPS_MLP), "own") as pair,
        FaultProxy(pair.address, seed=6) as proxy,
        verifier(make_runner(), await proxy.start(), pause=0.0) as one,
        Client(one.address) as client,
    ):
        asked = request(PROMPT, GREEDY, max_tokens=40)
        plain = request(PROMPT, GREEDY, max_tokens=40, speculative=False)
        expected = (await client.generate(plain)).tokens
        for number in itertools.count():
            await until(client.connected)
            proxy.corrupt_once(37 * (number % 16), "homeward" if number % 2 else "outward")
            assert (await client.generate(asked)).tokens == expected
            # Where it lies in the length of a frame, the rest waits for more.
            if number % 4 == 3:
                proxy.cut()
                await until(lambda: not proxy.connections)
            # What is hit depends on how much is said before an answer is over.
            if number >= 15 and proxy.outward.flipped + proxy.homeward.flipped >= 8:
                break
            assert number < 200


async def test_pulls_over_a_damaging_network(make_runner, monkeypatch) -> None:
    """Of pulls in messages each chunk is right, or the pull fails with an error of ours."""
    monkeypatch.setattr("slipstream.wire.kv_client._CHUNK_BYTES", 8192)
    outcomes: Counter[str] = Counter()
    async with (
        verifier(make_runner()) as one,
        FaultProxy(one.address, seed=7) as proxy,
        Client(one.address) as client,
    ):
        asked = request(PROMPT, max_tokens=500, speculative=False)
        one.stands = lambda turn: turn.decoding and one.engine.counters.generated_tokens >= 4
        going = asyncio.create_task(client.generate(asked))
        fingerprint = one.engine.runner.loaded.fingerprint
        prefix = PrefixChain(fingerprint, PROMPT).at(len(PROMPT))
        puller = KvClient(await proxy.start(), share_memory=False)
        await until(lambda: one.engine.num_running)
        handle = await puller.acquire(fingerprint, prefix)

        async def pull(seconds: float) -> list[tuple[int, bytes]]:
            asked = puller.pull(handle, (0, 1), 0, len(PROMPT), timeout=seconds)
            return [(chunk.start, bytes(chunk.data)) async for chunk in asked]

        expected = await pull(60.0)
        assert len(expected) > 4
        proxy.corrupt(per_kib=0.02)
        for number in itertools.count():
            if number >= 60 and outcomes["right"] and outcomes["corrupted"]:
                break
            assert number < 600, outcomes
            try:
                # One whose length is damaged waits for what never comes.
                assert await pull(1.0) == expected
                outcomes["right"] += 1
            except SlipstreamError as failure:
                outcomes[failure.code] += 1
                proxy.cut()
        proxy.heal()
        proxy.cut()
        going.cancel()
        await one.on_engine(lambda kv: [kv.release(lease) for lease in list(kv._leases)])
        await puller.close()
