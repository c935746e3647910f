"""Verifier and drafter as real processes, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from slipstream.core.errors import ContextTooLong, InvalidRequest, ModelMismatch
from slipstream.core.params import SamplingParams
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc, types_pb2, verifier_pb2
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel, is_serving
from tests.integration.client import GREEDY, Client, drafter_status, request
from tests.integration.processes import until
from tests.verifier.rig import EOS, VOCAB

PROMPT = tuple(range(10, 40))
SAMPLED = SamplingParams(
    temperature=1.0, top_k=50, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.3, seed=7
)
BOTH = pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@pytest.fixture
async def client(pair):
    """A client of the verifier, whose drafter is there and connected."""
    if pair.drafter is None or pair.drafter.process.poll() is not None:
        pair.start_drafter()
    async with Client(pair.verifier.address) as one:
        await until(one.connected, 150)
        yield one
        assert pair.verifier.process.poll() is None, (pair.verifier.process, pair.verifier.log)


async def settled(client: Client, pair) -> None:
    """Neither side holds anything any more."""

    async def nothing() -> bool:
        status = await client.status()
        drafter = await drafter_status(pair.drafter_address)
        return (
            status.requests_running == status.requests_waiting == status.kv_blocks_used == 0
            and drafter.open_sequences == drafter.kv_blocks_used == 0
        )

    await until(nothing)


@BOTH
async def test_speculative_equals_plain(client, pair, params) -> None:
    """The same tokens over the wire with and without speculation, in fewer steps with it."""
    plain = await client.generate(request(PROMPT, params, max_tokens=600, speculative=False))
    asked = request(PROMPT, params, max_tokens=600, speculative=True)
    fast = await client.with_drafts(asked, plain.tokens)
    default = await client.generate(request(PROMPT, params, max_tokens=600))
    assert plain.tokens == fast.tokens == default.tokens
    assert len(plain.tokens) == 600
    assert plain.finish == fast.finish == types_pb2.FINISH_REASON_LENGTH
    assert (plain.stats.num_steps, plain.stats.num_draft_tokens) == (600, 0)
    stats = fast.stats
    assert 0 < stats.num_accepted_tokens <= stats.num_draft_tokens
    assert stats.num_steps + stats.num_accepted_tokens in {600, 601}
    assert sum(stats.acceptance_histogram) == stats.num_spec_steps
    await settled(client, pair)


async def test_seed_is_reported(client) -> None:
    """A request without a seed gets one that gives the same tokens again."""
    asked = request(PROMPT, SAMPLED)
    asked.sampling.ClearField("seed")
    first, second = await client.all([asked, asked])
    assert first.seed != second.seed
    assert first.tokens != second.tokens
    asked.sampling.seed = first.seed
    assert (await client.generate(asked)).tokens == first.tokens


async def test_log_probabilities(client) -> None:
    """Log probabilities come with every token where they are asked for, best first."""
    heads = []
    call = client.stub.Generate(request(PROMPT, max_tokens=20, logprobs=2), timeout=60)
    async for message in call:
        heads += [(t.id, t.logprob, [(b.token_id, b.logprob) for b in t.top_logprobs])
                  for t in message.tokens]  # fmt: skip
    assert len(heads) == 20
    for token, logprob, top in heads:
        assert top[0] == (token, logprob)  # greedy: the chosen one is the best
        assert 0 >= top[0][1] >= top[1][1]


async def test_end_of_sequence(client) -> None:
    """The model's end of sequence ends a generation with STOP; its token is the last."""
    params = SamplingParams(logit_bias={EOS: 4.0}, seed=3)
    answer = await client.generate(request(PROMPT, params, max_tokens=500, ignore_eos=False))
    assert answer.finish == types_pb2.FINISH_REASON_STOP
    assert answer.tokens.index(EOS) == len(answer.tokens) - 1


async def test_a_hundred_at_once(client, pair) -> None:
    """A hundred concurrent requests all end, each with the tokens that it gets alone."""
    kinds = [(PROMPT[:n], SamplingParams(seed=n)) for n in (1, 7, 12, 30)]
    alone = [
        await client.generate(request(*kind, max_tokens=40, speculative=False)) for kind in kinds
    ]
    answers = await client.all(
        [request(*kinds[i % 4], max_tokens=40, speculative=i % 5 > 0) for i in range(100)]
    )
    assert [a.tokens for a in answers] == [alone[i % 4].tokens for i in range(100)]
    await settled(client, pair)


async def test_cancellation(client, pair) -> None:
    """Clients that leave in mid-stream: soon neither side runs or holds anything for them."""

    async def leave_after(count: int) -> None:
        call = client.stub.Generate(request(PROMPT, SAMPLED, max_tokens=4000), timeout=60)
        async for message in call:
            count -= len(message.tokens)
            if count <= 0:
                break
        call.cancel()

    async def left_early() -> bool:
        """Whether all are let go of long before their ends, 20,000 tokens in all: nothing but that
        they left would do it. A client on busy cores may be late to leave, now and then."""
        before = (await client.status()).generated_tokens
        await asyncio.gather(*(leave_after(count) for count in (1, 1, 5, 20, 60)))
        await settled(client, pair)
        return (await client.status()).generated_tokens - before < 10_000

    await until(left_early)
    # A deadline that passes is a client that leaves, too.
    call = client.stub.Generate(request(PROMPT, max_tokens=4000), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError, match="Deadline"):
        async for _ in call:
            pass
    await settled(client, pair)


def _sampling(**fields) -> verifier_pb2.GenerateRequest:
    asked = request(PROMPT)
    for name, value in fields.items():
        setattr(asked.sampling, name, value)
    return asked


def _biased(token: int, bias: float) -> verifier_pb2.GenerateRequest:
    asked = request(PROMPT)
    asked.sampling.logit_bias[token] = bias
    return asked


NAN = float("nan")
BAD = {
    "empty prompt": (request([]), "prompt"),
    "token beyond the vocabulary": (request([1, VOCAB]), "prompt"),
    "huge token": (request([2**32 - 1]), "prompt"),
    "no tokens": (request(PROMPT, max_tokens=0), "max_tokens"),
    "too many tokens": (request(PROMPT, max_tokens=4096), "max_tokens"),
    "4 billion tokens": (request(PROMPT, max_tokens=2**32 - 1), "max_tokens"),
    "prompt beyond the context": (request([1] * 5000), "max_tokens"),
    "temperature NaN": (_sampling(temperature=NAN), "temperature"),
    "temperature infinite": (_sampling(temperature=float("inf")), "temperature"),
    "temperature negative": (_sampling(temperature=-1), "temperature"),
    "top_p negative": (_sampling(top_p=-0.5), "top_p"),
    "top_p zero": (_sampling(top_p=0), "top_p"),
    "top_p above 1": (_sampling(top_p=1.5), "top_p"),
    "min_p NaN": (_sampling(min_p=NAN), "min_p"),
    "presence_penalty": (_sampling(presence_penalty=3), "presence_penalty"),
    "frequency_penalty": (_sampling(frequency_penalty=NAN), "frequency_penalty"),
    "repetition_penalty zero": (_sampling(repetition_penalty=0), "repetition_penalty"),
    "seed": (_sampling(seed=2**64 - 1), "seed"),
    "logit_bias of no token": (_biased(VOCAB, 1.0), "logit_bias"),
    "logit_bias NaN": (_biased(1, NAN), "logit_bias"),
    "logprobs": (request(PROMPT, logprobs=100), "logprobs"),
    "no stop message": (verifier_pb2.GenerateRequest(prompt_token_ids=PROMPT), "max_tokens"),
    "nothing at all": (verifier_pb2.GenerateRequest(), "max_tokens"),
}


async def test_bad_input(client) -> None:
    """Each bad value is refused as INVALID_ARGUMENT by a message that names its field, and a
    request that runs beside them gets its tokens."""
    expected = (await client.generate(request(PROMPT, SAMPLED, max_tokens=1500))).tokens
    beside = asyncio.create_task(client.generate(request(PROMPT, SAMPLED, max_tokens=1500)))
    for name, (asked, field) in BAD.items():
        error = await client.error(asked)
        assert isinstance(error, InvalidRequest), f"{name}: {error!r}"
        assert field in error.message, f"{name}: {error.message}"
        assert error.param == field, f"{name}: {error.param}"
    assert isinstance(await client.error(BAD["too many tokens"][0]), ContextTooLong)
    assert (await beside).tokens == expected


async def test_health_and_reflection(client, pair) -> None:
    """Both answer health checks by name and in general, and list their services."""
    for service, name in ((pair.verifier, "VerifierService"), (pair.drafter, "DrafterService")):
        full = f"slipstream.v1.{name}"
        # It is given a second to answer.
        await until(lambda service=service: is_serving(service.address))
        await until(lambda service=service, full=full: is_serving(service.address, full))
        assert not await is_serving(service.address, "slipstream.v1.Nonsense")
        async with channel(service.address) as link:
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(link)
            async for reply in stub.ServerReflectionInfo(iter([ask]), timeout=60):
                listed = {one.name for one in reply.list_services_response.service}
        assert {full, "grpc.health.v1.Health"} <= listed


async def test_model_and_drafter_describe_themselves(client, pair, tiny) -> None:
    """GetModel and GetDrafter tell what is served; both name the same model."""
    model = await client.stub.GetModel(verifier_pb2.GetModelRequest(), timeout=60)
    drafter = await drafter_status(pair.drafter_address)
    assert model.fingerprint == drafter.model_fingerprint != ""
    assert (model.model_id, model.vocab_size, model.context_length) == (tiny.name, VOCAB, 4096)
    assert (model.dtype, model.device, model.exactness) == ("float32", "cpu", "strict")
    assert list(model.eos_token_ids) == [EOS]
    assert ("native" in drafter.layer_plan, drafter.device) == (True, "cpu")
    assert drafter.weight_bytes > 0


@pytest.mark.parametrize(
    ("first", "kind", "words"),
    [
        (drafter_pb2.DraftRequest(), InvalidRequest, "hello"),
        (
            drafter_pb2.DraftRequest(
                commands=[drafter_pb2.DraftCommand(close=drafter_pb2.CloseSequence())]
            ),
            InvalidRequest,
            "hello",
        ),
        (
            drafter_pb2.DraftRequest(
                commands=[drafter_pb2.DraftCommand(hello=drafter_pb2.Hello(model_fingerprint="x"))]
            ),
            ModelMismatch,
            "same model",
        ),
    ],
)
async def test_strangers_at_the_drafter(client, pair, first, kind, words) -> None:
    """A draft stream that does not begin as it should ends with the reason; the rest goes on."""
    async with channel(pair.drafter_address) as link:
        stream = drafter_pb2_grpc.DrafterServiceStub(link).Draft(timeout=60)
        await stream.write(first)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stream.read()
    error = error_of(failure.value)
    assert isinstance(error, kind)
    assert words in error.message
    await client.with_drafts(request(PROMPT, max_tokens=300))


async def test_drafter_killed_and_back(client, pair) -> None:
    """SIGKILL in mid-generation and a new drafter: the same tokens, and drafts are taken again."""
    asked = request(PROMPT, SAMPLED, max_tokens=1500)
    plain = request(PROMPT, SAMPLED, max_tokens=1500, speculative=False)
    expected = (await client.generate(plain)).tokens
    before = await client.status()

    async def kill_at_300(tokens: list[int]) -> None:
        if len(tokens) < 300 or pair.drafter is None:
            return
        if await _taken(client) > taken:
            pair.end_drafter()

    # On busy cores an answer may be over before its first draft is accepted.
    deadline = time.monotonic() + 60
    while pair.drafter is not None:
        assert time.monotonic() < deadline, "no draft was ever accepted"
        taken = await _taken(client)
        answer = await client.generate(asked, kill_at_300)
        assert answer.tokens == expected
    assert answer.stats.num_accepted_tokens > answer.stats.num_accepted_guess_tokens
    await until(lambda: _gone(client))

    # Late: it comes while generations run, and they are opened on it as they are.
    running = [asyncio.create_task(_again_and_again(client, asked, expected)) for _ in range(2)]
    pair.start_drafter()
    await until(client.connected, 150)
    connected, taken = await client.status(), await _taken(client)
    assert connected.drafter_connections == before.drafter_connections + 1
    assert connected.without_drafter_seconds > before.without_drafter_seconds

    async def resumed() -> bool:
        return await _taken(client) > taken + 50

    await until(resumed)
    for task in running:
        task.cancel()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(outcome, asyncio.CancelledError), outcome
    await settled(client, pair)


async def _taken(client: Client) -> int:
    """Tokens that came from the drafter's drafts, not from the verifier's own guesses."""
    status = await client.status()
    return status.accepted_tokens - status.accepted_guess_tokens


async def _gone(client: Client) -> bool:
    return not await client.connected()


async def _again_and_again(client: Client, asked, expected: list[int]) -> None:
    while True:
        assert (await client.generate(asked)).tokens == expected


async def test_drafter_that_hangs(client, pair) -> None:
    """SIGSTOP of the drafter: the verifier goes on at its plain pace with the same tokens."""
    asked = request(PROMPT, SAMPLED, max_tokens=800)
    plain = request(PROMPT, SAMPLED, max_tokens=800, speculative=False)
    expected = (await client.generate(plain)).tokens

    async def seconds(one) -> float:
        started = time.monotonic()
        assert (await client.generate(one)).tokens == expected
        return time.monotonic() - started

    async def at_plain_pace() -> bool:
        """Others on the machine may hold up one of the two, but not always the same one."""
        return await seconds(asked) < 3 * await seconds(plain) + 5

    pair.drafter.signal(signal.SIGSTOP)
    try:
        await until(at_plain_pace)
    finally:
        pair.drafter.signal(signal.SIGCONT)
    await settled(client, pair)
    assert (await client.generate(asked)).tokens == expected


async def test_drafter_with_another_model(client, pair, other_tiny) -> None:
    """A drafter of another model is refused with the reason on both sides; decoding goes on."""
    expected = (await client.generate(request(PROMPT, SAMPLED, max_tokens=200))).tokens
    stranger = pair.start_drafter(other_tiny)

    async def refused() -> bool:
        return "same model" in (await client.status()).drafter_detail

    await until(refused, 150)
    assert not await client.connected()
    answer = await client.generate(request(PROMPT, SAMPLED, max_tokens=200))
    assert answer.tokens == expected
    # What else is drafted are the verifier's own guesses.
    assert answer.stats.num_draft_tokens == answer.stats.num_guess_tokens
    stranger.wait_log("another model was refused")
    pair.verifier.wait_log("same model")
    assert stranger.terminate() == 0
    pair.drafter = None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_the_verifier_cleanly(start, tiny, number) -> None:
    """SIGTERM and SIGINT end a busy verifier that never saw its drafter with exit code 0."""
    from tests.integration.conftest import TINY
    from tests.integration.processes import free_address

    service = start("verifier", tiny, (*TINY, "--drafter", free_address()))
    await asyncio.to_thread(service.wait_ready)
    async with Client(service.address) as client:
        status = await client.status()
        assert not status.drafter_connected
        assert status.drafter_detail
        busy = asyncio.create_task(client.generate(request(PROMPT, max_tokens=4000)))
        await until(lambda: _running(client))
        service.signal(number)
        assert await asyncio.to_thread(service.process.wait, 60) == 0, service.log
        with contextlib.suppress(Exception):
            await asyncio.wait_for(busy, 60)
        assert busy.done()
    assert "Traceback" not in service.log, service.log


async def _running(client: Client) -> bool:
    return (await client.status()).requests_running == 1
