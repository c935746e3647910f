"""Whatever is wrong with the verifier's keys and values: the same tokens, the reason counted."""

from __future__ import annotations

import asyncio

import pytest

from drafter_service.kv_source import Source, Want
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.prefix import PrefixChain
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import free_address, until
from tests.kv.fake_holder import fake_holder
from tests.kv.rig import drafter, verifier

SKIPS_MLP = LayerPlan(skip_mlp=frozenset({1}))
PROMPT = tuple((5 * i) % 90 + 3 for i in range(200))


async def answers(one, **how):
    async with Client(one.address) as client:
        plain = await client.generate(request(PROMPT, GREEDY, max_tokens=40, speculative=False))
        # Whatever fails does so before the first draft.
        one.wait_for_drafts()
        answer = await client.generate(request(PROMPT, GREEDY, max_tokens=40, **how))
        assert answer.tokens == plain.tokens
        return answer


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"breaks_after": 0}, "cut"),
        ({"breaks_after": 5}, "cut"),
        ({"pace": 30.0}, "slow"),
        ({"handle": {"model_fingerprint": "another"}}, "model_mismatch"),
        ({"handle": {"head_dim": 16}}, "model_mismatch"),
        ({"handle": {"layers": [0]}}, "model_mismatch"),
        ({"answer": {"dtype": "complex64"}}, "failed"),
        ({"answer": {"data": b"123"}}, "failed"),
        ({"answer": {"data": bytes(64)}}, "failed"),
        ({"answer": {"layers": [0]}}, "failed"),
        ({"answer": {"start": 3, "end": 8}}, "failed"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_bad_holders(make_runner, how, reason) -> None:
    """Streams that break, crawl, or carry what they should not."""
    own = make_runner()
    patience = {"least_wait": 0.05} if reason == "slow" else {}
    async with (
        fake_holder(own, tokens=PROMPT, **how) as (fake, address),
        drafter(make_runner(SKIPS_MLP), **patience) as pair,
        verifier(own, pair.address, kv_address=address) as one,
    ):
        await answers(one)
        await until(lambda: pair.fallbacks)
        assert pair.fallbacks == {reason: 1}
        assert pair.context.counters.pulls == 0
        await until(lambda: fake.released == 1)
        if how == {"breaks_after": 5}:
            # What came in time was kept: it is not computed again.
            assert pair.context.counters.pulled_positions == 40
            # A commit that came meanwhile is computed with the rest.
            assert 160 <= pair.engine.counters.prefilled_positions < 199


async def test_a_lease_that_comes_too_late(make_runner) -> None:
    """A sequence that ends before its lease is granted: the lease goes straight back."""
    runner, grant = make_runner(), asyncio.Event()
    async with fake_holder(runner, tokens=PROMPT, waits=grant) as (fake, address):
        source = Source(runner, address, share_memory=False)
        prefix = PrefixChain(runner.loaded.fingerprint, PROMPT).at(100)
        pull = source.pull(Want(1, prefix, follow=False), lambda _: None, lambda _: None)
        await until(lambda: fake.acquired)
        pull.cancel()
        await asyncio.wait([pull])
        assert not fake.released
        grant.set()
        await until(lambda: fake.released == 1)
        await source.close()


async def test_wrong_keys_and_values(make_runner) -> None:
    """Zeros instead of the verifier's: every token is right all the same."""
    own = make_runner()
    async with (
        fake_holder(own, tokens=PROMPT) as (_, address),
        drafter(make_runner(SKIPS_MLP)) as pair,
        verifier(own, pair.address, kv_address=address) as one,
    ):
        await answers(one)
        assert pair.context.counters.pulled_positions == 199
        assert pair.fallbacks == {}


async def test_another_text(make_runner) -> None:
    """Chunks of another prefix are not taken."""
    own = make_runner()
    async with (
        fake_holder(own, tokens=(9, *PROMPT)) as (_, address),
        drafter(make_runner(SKIPS_MLP)) as pair,
        verifier(own, pair.address, kv_address=address) as one,
    ):
        await answers(one)
        assert pair.context.counters.pulled_positions == 0


async def test_nobody_there(make_runner) -> None:
    """An address that nobody listens on, and a verifier that gives nothing away: both count."""
    own = make_runner()
    async with drafter(make_runner(SKIPS_MLP)) as pair:
        async with verifier(own, pair.address, kv_address=free_address()) as one:
            await answers(one)
            await until(lambda: pair.fallbacks == {"cut": 1})
        async with verifier(own, pair.address, kv_address="") as one:
            assert (await answers(one)).stats.num_draft_tokens > 0
        assert pair.fallbacks == {"cut": 1, "not_offered": 1}


async def test_another_life_of_the_holder(make_runner) -> None:
    """A verifier that restarted between the lease and the pull."""
    own = make_runner()
    async with drafter(make_runner(SKIPS_MLP)) as pair, verifier(own, pair.address) as one:
        handle_of = one.kv._handle

        def another(lease):
            handle = handle_of(lease)
            handle.incarnation = "an earlier life"
            return handle

        one.kv._handle = another
        await answers(one)
        await until(lambda: pair.fallbacks == {"restarted": 1})
        for lease in list(one.engine.kv._leases):
            await one.on_engine(lambda kv, lease=lease: kv.release(lease))


async def test_no_room(make_runner) -> None:
    """Without room in the drafter's pool at once, a sequence computes its context later."""
    own = make_runner()
    async with (
        drafter(make_runner(SKIPS_MLP, blocks=20)) as pair,
        verifier(own, pair.address) as one,
        Client(one.address) as client,
    ):
        # The drafter hears of all three before the first of them is over.
        one.stands = lambda turn: turn.decoding and pair.fallbacks.get("no_room", 0) < 2
        asked = [request(PROMPT, GREEDY, max_tokens=100 + i) for i in range(3)]
        got = await client.all(asked)
        assert got[0].tokens == got[2].tokens[:100]
        assert pair.fallbacks == {"no_room": 2}


async def test_opened_in_mid_generation(make_runner) -> None:
    """A drafter that comes late, or again, fetches prompt and generated tokens alike."""
    own, cheap = make_runner(), make_runner(SKIPS_MLP)
    async with (
        drafter(cheap, "commit") as pair,
        verifier(own, pair.address, pause=0.01) as one,
        Client(one.address) as client,
    ):
        # Neither is over before the drafter has come again.
        made = one.engine.counters
        one.stands = lambda turn: (
            turn.decoding and made.generated_tokens >= 200 and pair.context.counters.pulls < 2
        )
        asked = request(PROMPT, GREEDY, max_tokens=300)
        expected = asyncio.create_task(
            client.generate(request(PROMPT, GREEDY, max_tokens=300, speculative=False))
        )
        going = asyncio.create_task(client.generate(asked))
        await until(lambda: pair.context.counters.refreshed_positions > 20)
        numbers = list(pair.context._sources)
        await asyncio.to_thread(pair.engine.disconnect, numbers[0])
        # The verifier hears that its stream is lost, and opens what runs again.
        for outbox in pair.outboxes.values():
            outbox.put_nowait(None)
        await until(lambda: pair.context.counters.pulls == 2)
        assert (await going).tokens == (await expected).tokens
        chain = PrefixChain(own.loaded.fingerprint, PROMPT)
        assert len(chain) < pair.context.counters.pulled_positions - 199
        assert pair.fallbacks.keys() <= {"cut"}


async def test_two_verifiers(make_runner) -> None:
    """Sequences of two verifiers, each with the keys and values of its own."""
    first, second = make_runner(), make_runner()
    async with (
        drafter(make_runner(SKIPS_MLP), "commit") as pair,
        verifier(first, pair.address) as one,
        verifier(second, pair.address) as two,
    ):
        await asyncio.gather(answers(one), answers(two))
        assert pair.context.counters.pulls == 2
        assert pair.fallbacks == {}
