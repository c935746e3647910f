"""Kept generations over gRPC."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from slipstream.core.errors import (
    GenerationNotFound,
    IdempotencyConflict,
    InvalidParameter,
    StoreUnavailable,
)
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.gateway.conftest import EOS
from tests.gateway.kept import TroubledStore, cut_logs, events_of, substance

WORDS = "Hello, naïve 日本😀 world! Stop here and there."


@pytest.fixture
async def pair(make_rig):
    """Two gateways, each with a verifier, over one store, and stubs of both."""
    store = TroubledStore()
    async with contextlib.AsyncExitStack() as stack:
        rigs = [await stack.enter_async_context(make_rig(store=store)) for _ in range(2)]
        for rig in rigs:
            link = await stack.enter_async_context(channel(rig.grpc_address))
            rig.stub, rig.store = gateway_pb2_grpc.GatewayServiceStub(link), store
        yield rigs


async def generate(rig, **fields):
    request = gateway_pb2.GatewayServiceGenerateRequest(**fields)
    return [response async for response in rig.stub.Generate(request, timeout=60)]


@contextlib.contextmanager
def raises(kind, status):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        yield
    assert isinstance(error_of(raised.value), kind)
    assert raised.value.code() is status


def said(responses):
    """Of each continuation: text, tokens, and what its end tells."""
    found = {}
    for response in responses:
        text, tokens, end = found.get(response.index, ("", [], None))
        assert end is None
        if response.finish_reason:
            end = (response.finish_reason, response.usage.completion_tokens, response.seed)
        tokens = [*tokens, *((token.id, token.logprob) for token in response.tokens)]
        found[response.index] = (text + response.text, tokens, end)
    return found


@pytest.mark.parametrize("known", [None, 3, 1000])
async def test_every_cut(pair, ids, known):
    """Behind the last response that came, the rest follows exactly, whatever the log holds."""
    one, two = pair
    for rig, chunks in ((one, (2, 1)), (two, (3,))):
        rig.fake.behaviour = FakeBehaviour([*ids(WORDS), EOS], chunks=chunks)
    whole = await generate(one, text="x", n=2, logprobs=1, stop_strings=["p h"])
    name = whole[0].request_id
    for place, last in enumerate(whole):
        assert last.event_id.startswith(f"{name}/")
        if known != 1000:
            cut_logs(one.store, name, known)
        rest = await generate((one, two)[place % 2], resume_from=last.event_id)
        assert said(rest) == said(whole[place + 1 :])
        assert [response.event_id for response in rest[-1:]] == [
            response.event_id for response in whole[place + 1 :][-1:]
        ]


async def test_across_the_doors(pair, ids):
    """What began over gRPC goes on over HTTP, and the other way round."""
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS))
    over_grpc = await generate(one, text="x", request_id="mine")
    last = over_grpc[4].event_id
    answer = await two.http.get("/v1/generations/mine/events", headers={"Last-Event-ID": last})
    text = "".join(response.text for response in over_grpc[:5])
    assert text + substance(events_of(answer.text))["choices"][0]["text"] == WORDS
    whole = events_of((await one.complete("x", stream=True, max_tokens=99)).text)
    rest = await generate(two, resume_from=whole[4].id)
    begun = substance(whole[:5])["choices"][0]["text"]
    assert begun + "".join(response.text for response in rest) == WORDS


async def test_wrong_ids(pair, ids):
    """They are refused with words that name the field."""
    one, _ = pair
    whole = await generate(one, text="x", request_id="mine")
    with raises(InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT):
        await generate(one, resume_from="nonsense")
    with raises(InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT):
        await generate(one, resume_from="mine/1,2")
    with raises(GenerationNotFound, grpc.StatusCode.NOT_FOUND):
        await generate(one, resume_from="other/1")
    assert await generate(one, resume_from=whole[-1].event_id) == []


async def test_the_same_key(pair, ids):
    """Joins, and conflicts; the store down is no answer."""
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS), delay=0.01)
    first, joined = await asyncio.gather(
        *(generate(one, text="x", idempotency_key="k") for _ in range(2))
    )
    later = await generate(two, text="x", idempotency_key="k", request_id="another", priority=4)
    assert said(first) == said(joined) == said(later)
    assert {response.request_id for response in later} == {first[0].request_id}
    assert len(one.fake.requests) == 1
    with raises(IdempotencyConflict, grpc.StatusCode.ALREADY_EXISTS):
        await generate(two, text="y", idempotency_key="k")
    with raises(InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT):
        await generate(two, text="y", idempotency_key="é")
    one.store.all_calls("down")
    with raises(StoreUnavailable, grpc.StatusCode.UNAVAILABLE):
        await generate(two, text="x", idempotency_key="k")


async def test_in_the_background(pair, ids, eventually):
    """One response names it; GetGeneration tells how it stands, DeleteGeneration ends it."""
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS), hang_after=6)
    (begun,) = await generate(one, text="x", background=True, n=2)
    assert (begun.request_id != "", begun.text, begun.finish_reason) == (True, "", 0)
    asked = gateway_pb2.GetGenerationRequest(request_id=begun.request_id)
    await eventually(lambda: [log.length for log in one.store._logs.values()] == [6, 6])
    told = await two.stub.GetGeneration(asked, timeout=10)
    assert told.status == gateway_pb2.GENERATION_STATUS_IN_PROGRESS
    assert [len(result.tokens) for result in told.results] == [6, 6]
    await two.stub.DeleteGeneration(
        gateway_pb2.DeleteGenerationRequest(request_id=begun.request_id), timeout=10
    )
    await eventually(lambda: not one.fake.running)
    with raises(GenerationNotFound, grpc.StatusCode.NOT_FOUND):
        await two.stub.GetGeneration(asked, timeout=10)
    one.fake.behaviour = FakeBehaviour(ids(WORDS))
    (begun,) = await generate(one, text="x", background=True, n=2)
    asked = gateway_pb2.GetGenerationRequest(request_id=begun.request_id)
    async with asyncio.timeout(20):
        while True:
            told = await two.stub.GetGeneration(asked, timeout=10)
            if told.status == gateway_pb2.GENERATION_STATUS_COMPLETED:
                break
            await asyncio.sleep(0.02)
    assert [result.text for result in told.results] == [WORDS] * 2
    assert told.results[1].usage.completion_tokens == len(ids(WORDS))
