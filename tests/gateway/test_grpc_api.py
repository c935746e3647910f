from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway import keys
from slipstream.core.errors import ContextTooLong, ModelNotFound, NotAuthenticated
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

Request = gateway_pb2.GatewayServiceGenerateRequest


async def generate(rig, metadata=(), **fields):
    async with channel(rig.grpc_address) as link:
        stub = gateway_pb2_grpc.GatewayServiceStub(link)
        call = stub.Generate(Request(**fields), timeout=10, metadata=metadata)
        return [response async for response in call]


async def test_text_chat_and_ids(rig, ids):
    """Text, chat and token ids give the same answer; prompts are prepared as over HTTP."""
    rig.fake.behaviour = FakeBehaviour([*ids("Hello, world!"), 2])
    chat = gateway_pb2.Chat(messages=[gateway_pb2.ChatMessage(role="user", content="hi")])
    for prompt in (
        {"text": "hi"},
        {"chat": chat},
        {"token_ids": gateway_pb2.TokenIds(ids=[5, 6])},
    ):
        responses = await generate(rig, **prompt)
        assert "".join(response.text for response in responses) == "Hello, world!"
        tokens = [token.id for response in responses for token in response.tokens]
        assert tokens == [*ids("Hello, world!"), 2]
    await rig.chat("hi")
    text, over_grpc, raw, over_http = [list(r.prompt_token_ids) for r in rig.fake.requests]
    assert text == [0, *ids("hi")]
    assert over_grpc == over_http
    assert raw == [5, 6]


async def test_last_message(rig, ids):
    """The last message of each continuation has reason, usage, stats and its own seed."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello, world!"), chunks=(4,))
    sampling = types_pb2.SamplingParams(seed=40, temperature=0)
    responses = await generate(rig, text="hi", n=2, request_id="mine", sampling=sampling)
    ends = [response for response in responses if response.finish_reason]
    assert sorted((end.index, end.seed) for end in ends) == [(0, 40), (1, 41)]
    for end in ends:
        assert end.request_id == "mine"
        assert end.finish_reason == types_pb2.FINISH_REASON_STOP
        assert end.usage.completion_tokens == len(ids("Hello, world!"))
        assert end.stats.num_accepted_tokens > 0
    assert [request.sampling.temperature for request in rig.fake.requests] == [0, 0]


async def test_stop_string_and_length(rig, ids):
    """Stop strings and max_tokens work as over HTTP; 0 means the context window."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello, world! Hello"))
    cut = await generate(rig, text="hi", stop_strings=["wor"])
    assert "".join(response.text for response in cut) == "Hello, "
    assert rig.fake.requests[0].stop.max_tokens == 256 - len(ids("hi")) - 1
    short = await generate(rig, text="hi", stop=types_pb2.StopConditions(max_tokens=2))
    assert short[-1].finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert short[-1].usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({}, None, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "model": "other"}, ModelNotFound, grpc.StatusCode.NOT_FOUND),
        (
            {"token_ids": gateway_pb2.TokenIds(ids=[5] * 300)},
            ContextTooLong,
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        ({"text": "x", "n": 1000}, None, grpc.StatusCode.INVALID_ARGUMENT),
        ({"text": "x", "logprobs": 21}, None, grpc.StatusCode.INVALID_ARGUMENT),
        (
            {"text": "x", "sampling": types_pb2.SamplingParams(temperature=float("nan"))},
            None,
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            {"text": "x", "sampling": types_pb2.SamplingParams(seed=2**63)},
            None,
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
    ],
)
async def test_errors(rig, fields, kind, code):
    """Bad requests end with the status and code word of the error tree."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await generate(rig, **fields)
    assert raised.value.code() is code
    if kind is not None:
        assert isinstance(error_of(raised.value), kind)


async def test_roles(rig):
    """An unknown role is refused with the same words as over HTTP; developer means system."""
    for role in ("robot", ""):
        message = {"role": role, "content": "x"}
        chat = gateway_pb2.Chat(messages=[gateway_pb2.ChatMessage(**message)])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await generate(rig, chat=chat)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = error_of(raised.value)
        body = {"model": "tiny-chat", "messages": [message]}
        over_http = (await rig.http.post("/v1/chat/completions", json=body)).json()["error"]
        assert (error.message, error.param) == (over_http["message"], over_http["param"])
        for word in (repr(role), "system", "developer", "user", "assistant"):
            assert word in error.message
    assert rig.fake.requests == []
    for role in ("developer", "system"):
        message = gateway_pb2.ChatMessage(role=role, content="x")
        assert await generate(rig, chat=gateway_pb2.Chat(messages=[message]))
    developer, system = rig.fake.requests
    assert developer.prompt_token_ids == system.prompt_token_ids


async def test_body_limit(make_rig):
    """The limit on bodies holds for gRPC too."""
    async with make_rig(max_body_bytes=4096) as rig:
        assert await generate(rig, text="x" * 100)
        with pytest.raises(grpc.aio.AioRpcError, match="4096 bytes") as raised:
            await generate(rig, text="x" * 5000)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_cancel(rig, eventually):
    """Cancelling the call cancels the verifier's."""
    rig.fake.behaviour = FakeBehaviour([50] * 9, hang_after=2)
    async with channel(rig.grpc_address) as link:
        call = gateway_pb2_grpc.GatewayServiceStub(link).Generate(Request(text="x", n=2))
        await call.read()
        call.cancel()
        await eventually(lambda: len(rig.fake.cancelled) == 2)


async def test_keys_health_reflection(make_rig, tmp_path):
    """With keys a call needs one; health and reflection are open."""
    file = tmp_path / "keys"
    key = keys.add("me", file)
    async with make_rig(api_keys=file) as rig:
        for metadata in ((), (("authorization", "Bearer nope"),)):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await generate(rig, metadata, text="x")
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert isinstance(error_of(raised.value), NotAuthenticated)
        assert rig.fake.requests == []
        assert await generate(rig, (("authorization", f"Bearer {key}"),), text="x")
        async with channel(rig.grpc_address) as link:
            health = health_pb2_grpc.HealthStub(link)
            reply = await health.Check(
                health_pb2.HealthCheckRequest(service="slipstream.v1.GatewayService"), timeout=5
            )
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(link)
            asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
            async for answer in reflection.ServerReflectionInfo(iter(asked), timeout=5):
                names = [service.name for service in answer.list_services_response.service]
                assert "slipstream.v1.GatewayService" in names
                break
