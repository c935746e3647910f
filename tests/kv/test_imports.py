"""Keys and values from another verifier: bit for bit the tokens that computing them gives."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.core.errors import DeadlineExceeded, InvalidParameter, Unavailable
from slipstream.core.params import SamplingParams, StopConditions
from slipstream.core.prefix import PrefixChain
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.runner import ModelRunner
from tests.integration.client import GREEDY, Client, request
from tests.integration.processes import free_address, until
from tests.kv.fake_holder import fake_holder
from tests.kv.rig import PATIENCE_SECONDS, verifier
from verifier_service.generation import GenerationRequest
from verifier_service.kv_import import KvImports
from verifier_service.plan import Limits

PROMPT = tuple((11 * i) % 90 + 3 for i in range(300))
SAMPLED = SamplingParams(
    temperature=1.0, top_k=50, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.3, seed=7
)
CANONICAL = Limits(prefill_chunk=32, strict=True)
# Of the prompt's 300 tokens: whole chunks of 32.
SHARED = 288


def mixed(runner: ModelRunner) -> Limits:
    """Where a row's bits depend on no shape, so that blocks of answers are shared, too."""
    _, shapes = choose_shapes(runner, "strict")
    if shapes.max_rows < 64:
        pytest.skip("large steps do not agree here")
    return Limits.of(strict=True, exact_rows=shapes.max_rows, step_rows=64, prefill_chunk=32)


class Two:
    """A verifier that has computed things, and one that may take them from it."""

    def __init__(self, first, second, limits: Limits) -> None:
        self.first, self.second, self.limits = first, second, limits

    async def ask(self, one, params=GREEDY, prompt=PROMPT, **how):
        """All tokens with their log probabilities, as messages; and how many were in the cache."""
        asked = request(prompt, params, logprobs=2, speculative=False, **how)
        tokens, cached = [], 0
        async with Client(one.address) as client:
            async for message in client.stub.Generate(asked, timeout=60):
                tokens += [
                    (
                        token.id,
                        token.logprob,
                        [(top.token_id, top.logprob) for top in token.top_logprobs],
                    )
                    for token in message.tokens
                ]
                cached = message.cached_prompt_tokens
        return tokens, cached

    @property
    def counters(self):
        return self.second.engine.counters

    @property
    def failures(self) -> dict[str, int]:
        return dict(self.counters.kv_import_failures)


@pytest.fixture
async def two(make_runner, request):
    first, second = make_runner(), make_runner()
    kind = getattr(request, "param", "canonical")
    limits = CANONICAL if kind == "canonical" else mixed(first)
    how = {"limits": limits, "pause": 0.0}
    async with (
        verifier(first, **how) as one,
        verifier(second, incarnation="second life", **how) as other,
    ):
        yield Two(one, other, limits)


BOTH_KINDS = pytest.mark.parametrize("two", ["canonical", "mixed"], indirect=True)


@BOTH_KINDS
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_pulled_is_as_good_as_computed(two, params) -> None:
    """A generation that moves with its keys and values: bit for bit the rest of what it had, of
    which nothing is computed again but what could not be shared."""
    whole, _ = await two.ask(two.first, params, max_tokens=60)
    committed = [token for token, _, _ in whole[:37]]
    how = {"max_tokens": 60, "committed_token_ids": committed, "resumed": True}
    rest, cached = await two.ask(two.second, params, kv_holder=two.first.address, **how)
    assert rest == whole[37:]
    # 21 blocks of 337 tokens, or 9 chunks of the prompt.
    canonical = two.limits.canonical
    assert two.counters.kv_imported_tokens == (SHARED if canonical else 336)
    assert two.counters.kv_imported_bytes == two.counters.kv_imported_tokens * 256
    assert cached == (SHARED if canonical else 300)
    assert (two.counters.kv_imports, two.failures) == (1, {})
    assert two.counters.steps < 60
    await until(lambda: not two.first.engine.kv.num_leases)


@BOTH_KINDS
async def test_from_a_sequence_that_still_runs(two) -> None:
    """What moves while its first verifier goes on with it gets the same tokens."""
    expected, _ = await two.ask(two.first, SAMPLED, max_tokens=60)
    two.first.engine.runner.pool.forget()
    running = asyncio.create_task(two.ask(two.first, SAMPLED, max_tokens=600))
    await until(lambda: two.first.engine.num_running)
    await until(lambda: two.first.engine.runner.pool.count(_names(two, 18)) == 18)
    how = {"max_tokens": 60, "kv_holder": two.first.address}
    moved, cached = await two.ask(two.second, SAMPLED, **how)
    assert moved == expected
    assert cached == two.counters.kv_imported_tokens == SHARED
    running.cancel()


def _names(two: Two, blocks: int) -> list[bytes]:
    chain = PrefixChain(two.first.engine.runner.loaded.fingerprint, PROMPT)
    return [chain.at(16 * i).hash for i in range(1, blocks + 1)]


async def test_what_is_here_is_not_pulled(two) -> None:
    """Only what is missing comes; with all of it here, or at its own address, nothing does."""
    await two.ask(two.first, max_tokens=4)
    beginning = PROMPT[:100]
    await two.ask(two.second, prompt=beginning, max_tokens=4)
    how = {"max_tokens": 4, "kv_holder": two.first.address}
    await two.ask(two.second, **how)
    assert two.counters.kv_imported_tokens == SHARED - 96
    for holder in (two.first.address, two.second.address):
        await two.ask(two.second, max_tokens=4, kv_holder=holder)
    assert (two.counters.kv_imports, two.failures) == (1, {})


async def test_those_with_one_prefix_pull_it_once(two) -> None:
    """Six at once, of two prompts: each of the two comes once, and all have their tokens."""
    prompts = [PROMPT, PROMPT[::-1]]
    expected = [(await two.ask(two.first, prompt=each, max_tokens=5))[0] for each in prompts]
    how = {"max_tokens": 5, "kv_holder": two.first.address}
    asked = [two.ask(two.second, prompt=prompts[i % 2], **how) for i in range(6)]
    answers = await asyncio.gather(*asked)
    assert [tokens for tokens, _ in answers] == [expected[i % 2] for i in range(6)]
    assert (two.counters.kv_imports, two.failures) == (2, {})
    assert two.counters.kv_imported_tokens == 2 * SHARED


async def test_a_holder_that_dies_in_mid_pull(two, monkeypatch) -> None:
    """What had come by then is used, the rest is computed."""
    monkeypatch.setattr("slipstream.wire.kv_client._CHUNK_BYTES", 32 * 256)
    expected, _ = await two.ask(two.first, SAMPLED, max_tokens=9)
    really, sent = two.first.kv._response, []

    def dying(*how):
        sent.append(how)
        if len(sent) > 4:
            raise Unavailable("it is gone")
        return really(*how)

    monkeypatch.setattr(two.first.kv, "_response", dying)
    how = {"max_tokens": 9, "kv_holder": two.first.address}
    tokens, cached = await two.ask(two.second, SAMPLED, **how)
    assert tokens == expected
    assert cached == two.counters.kv_imported_tokens == 4 * 32
    assert two.failures == {"unreachable": 1}


LIES = [
    ({"tokens": PROMPT[::-1]}, "wrong"),
    ({"answer": {"data": b"\0" * 64}}, "wrong"),
    ({"answer": {"dtype": "bfloat16"}}, "wrong"),
    ({"answer": {"layers": [0]}}, "wrong"),
    ({"answer": {"start": 8}}, "wrong"),
    ({"answer": {"end": 4000}}, "wrong"),
    ({"handle": {"prefix": {"length": 16, "hash": bytes(16)}}}, "wrong"),
    ({"handle": {"prefix": {"length": 0}}}, "wrong"),
    ({"handle": {"prefix": {"length": 40_000}}}, "wrong"),
    ({"handle": {"head_dim": 16}}, "mismatch"),
    ({"handle": {"num_kv_heads": 1}}, "mismatch"),
    ({"handle": {"dtype": "bfloat16"}}, "mismatch"),
    ({"handle": {"layers": [0]}}, "mismatch"),
    ({"handle": {"model_fingerprint": "another"}}, "mismatch"),
]


async def test_a_holder_that_lies(two) -> None:
    """Another text's keys and values, or such of another size, kind or model: none of it is used,
    the tokens are those of computing, and it is counted."""
    runner, expected = two.second.engine.runner, await two.ask(two.first, max_tokens=9)
    for lie, reason in LIES:
        runner.pool.forget()
        two.counters.kv_import_failures.clear()
        async with fake_holder(runner, **{"tokens": PROMPT, **lie}) as (_, address):
            answer = await two.ask(two.second, max_tokens=9, kv_holder=address)
            assert answer == expected, lie
        assert two.failures == {reason: 1}, lie
    assert two.counters.kv_imports == 0


async def test_a_holder_that_does_not_answer(two, monkeypatch) -> None:
    """Nobody there, or somebody who says nothing: computed, and the next do not wait for it."""
    # However long three requests take.
    monkeypatch.setattr("verifier_service.kv_import._SHUNNED_SECONDS", 600.0)
    expected = await two.ask(two.first, max_tokens=5)
    runner = two.second.engine.runner
    async with fake_holder(runner, waits=asyncio.Event()) as (fake, silent):
        for holder, reason in ((free_address(), "unreachable"), (silent, "slow")):
            two.counters.kv_import_failures.clear()
            patience = 0.2 if reason == "slow" else PATIENCE_SECONDS
            monkeypatch.setattr("verifier_service.kv_import._ACQUIRE_SECONDS", patience)
            for _ in range(3):
                runner.pool.forget()
                answer = await two.ask(two.second, max_tokens=5, kv_holder=holder)
                assert answer == expected
            assert two.failures == (
                {reason: 3} if reason == "unreachable" else {"slow": 1, "unreachable": 2}
            )
        assert fake.acquired == 1


async def test_a_pull_that_takes_longer_than_computing(two) -> None:
    """It is given up, and what came by then is used or not: the tokens are the same."""
    expected, _ = await two.ask(two.first, max_tokens=5)
    engine, address = two.second.engine, two.second.address
    impatient = KvImports(engine, address, "second life", least=0.1)
    async with fake_holder(engine.runner, tokens=PROMPT, pace=600.0) as (fake, slow):
        asked = GenerationRequest(
            "r", PROMPT, GREEDY, StopConditions(5), False, None, lambda _: None, kv_holder=slow
        )
        await impatient.fetch(asked)
        await until(lambda: fake.released)
        await impatient.close()
    assert two.failures == {"slow": 1}
    assert (await two.ask(two.second, max_tokens=5))[0] == expected


async def test_what_is_not_to_be_had(two, make_runner) -> None:
    """A holder without the prefix, and one that computes otherwise: each is counted as what it
    is."""
    expected = await two.ask(two.first, max_tokens=5)
    two.first.engine.runner.pool.forget()
    how = {"max_tokens": 5, "kv_holder": two.first.address}
    assert await two.ask(two.second, **how) == expected
    assert two.failures == {"not_found": 1}
    async with verifier(make_runner(), limits=Limits(), incarnation="fast", pause=0.0) as fast:
        two.second.engine.runner.pool.forget()
        answer = await two.ask(two.second, max_tokens=5, kv_holder=fast.address)
        assert answer == expected
        assert two.failures == {"not_found": 1, "mismatch": 1}


async def test_a_pool_without_room_to_spare(two, make_runner) -> None:
    """More than half of a pool is not given to what may be in vain."""
    expected = await two.ask(two.first, max_tokens=5)
    small, first = make_runner(blocks=30), two.first.engine.runner
    small.min_rows, small.query_multiple = first.min_rows, first.query_multiple
    async with verifier(small, limits=two.limits, incarnation="small", pause=0.0) as third:
        answer = await two.ask(third, max_tokens=5, kv_holder=two.first.address)
        assert answer == expected
        # 18 blocks of 30.
        assert dict(third.engine.counters.kv_import_failures) == {"no_room": 1}


async def test_deadlines_and_bad_requests(two, monkeypatch) -> None:
    """A deadline goes on while a holder is waited for, and who can never be served waits for
    none."""
    runner = two.second.engine.runner
    async with (
        fake_holder(runner, waits=asyncio.Event()) as (fake, silent),
        Client(two.second.address) as client,
    ):
        # On a busy machine the first may pass before the holder is even asked.
        monkeypatch.setattr("verifier_service.kv_import._SHUNNED_SECONDS", 0.0)
        for seconds in (0.2, 1.0, 5.0, 25.0):
            late = request(PROMPT, kv_holder=silent, deadline_seconds=seconds)
            assert isinstance(await client.error(late), DeadlineExceeded)
            if fake.acquired:
                break
        assert fake.acquired == 1
        bad = request(PROMPT, kv_holder=silent, committed_token_ids=[4000], max_tokens=9)
        assert isinstance(await client.error(bad), InvalidParameter)
        assert fake.acquired == 1


async def test_a_client_that_leaves_in_mid_pull(two) -> None:
    """Its import ends, its lease is given back, and nothing of the pool is held for it."""
    engine = two.second.engine
    async with (
        fake_holder(engine.runner, tokens=PROMPT, pace=0.3) as (fake, slow),
        Client(two.second.address) as client,
    ):
        call = client.stub.Generate(request(PROMPT, kv_holder=slow), timeout=30)
        await until(lambda: engine.runner.pool.num_used)
        call.cancel()
        await until(lambda: not engine.runner.pool.num_used)
        await until(lambda: fake.released)
