"""On what terms requests are served: priority, deadline, cache salt, tenant."""

from __future__ import annotations

import grpc
import openai
import pytest

from gateway import keys
from slipstream.core.errors import DeadlineExceeded
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

Request = gateway_pb2.GatewayServiceGenerateRequest


async def over_grpc(rig, metadata=(), timeout=10.0, **fields):
    async with channel(rig.grpc_address) as link:
        stub = gateway_pb2_grpc.GatewayServiceStub(link)
        call = stub.Generate(Request(**fields), timeout=timeout, metadata=metadata)
        return [response async for response in call]


async def test_fields_reach_the_verifier(rig):
    """Priority, deadline and salt arrive over both doors; without them nothing is asked for."""
    await rig.chat(priority=-3, timeout=5000, cache_salt="me", user="somebody")
    await rig.complete(priority=-3, timeout=5000.5, cache_salt="me")
    fields = {"text": "x", "priority": -3, "deadline_seconds": 5000, "cache_salt": "me"}
    await over_grpc(rig, **fields, timeout=9000)
    for got in rig.fake.requests:
        assert (got.priority, got.cache_salt, got.tenant) == (-3, "/me", "")
        assert 4900 < got.deadline_seconds < 5000.5
    await rig.chat()
    await over_grpc(rig, text="x", timeout=None)
    for got in rig.fake.requests[3:]:
        assert (got.priority, got.cache_salt, got.tenant) == (0, "", "")
        assert not got.HasField("deadline_seconds")


async def test_the_shortest_deadline_holds(rig):
    """Of the body's, the header's and the call's deadline the shortest is the verifier's."""
    body = {"model": "tiny-chat", "prompt": "x"}
    for header, field in (("3000", 6000), ("6000", 3000), ("3000.5", None)):
        headers = {"X-Request-Timeout": header}
        json = body | ({} if field is None else {"timeout": field})
        assert (await rig.http.post("/v1/completions", json=json, headers=headers)).is_success
    await over_grpc(rig, text="x", timeout=3000)
    await over_grpc(rig, text="x", timeout=3000, deadline_seconds=6000)
    await over_grpc(rig, text="x", timeout=6000, deadline_seconds=3000)
    assert len(rig.fake.requests) == 6
    # gRPC rounds a call's own up.
    assert all(2900 < got.deadline_seconds < 3100 for got in rig.fake.requests)


@pytest.mark.parametrize(
    "value", ["soon", "0", "-1", "nan", "inf", "86401", "", "1_0", "0x10", "1 0"]
)
async def test_bad_header(rig, value):
    """A timeout header that is no number of seconds up to a day is refused by name."""
    body = {"model": "tiny-chat", "prompt": "x"}
    headers = {"X-Request-Timeout": value}
    response = await rig.http.post("/v1/completions", json=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "X-Request-Timeout")
    assert rig.fake.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"deadline_seconds": float("nan")}, "deadline_seconds"),
        ({"deadline_seconds": 1e9}, "deadline_seconds"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
    ],
)
async def test_bad_terms_over_grpc(rig, fields, param):
    """Terms out of range end the call with INVALID_ARGUMENT and the field's name."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await over_grpc(rig, text="x", **fields)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_of(raised.value).param == param
    assert rig.fake.requests == []


async def test_deadline_before_and_after_the_first_token(rig, eventually):
    """Past its deadline a request ends with 504, or with the error in its stream, and is over."""
    for hang_after, stream in ((0, False), (0, True), (1, False), (1, True)):
        rig.fake.behaviour = FakeBehaviour([5, 6, 7], hang_after=hang_after)
        in_stream = hang_after and stream
        # On a busy machine the first token may take longer than the deadline.
        for seconds in (0.2, 1, 5, 15) if in_stream else (0.2,):
            response = await rig.complete("x", timeout=seconds, stream=stream)
            if response.status_code == 200:
                break
        assert "deadline_exceeded" in response.text
        assert response.status_code == (200 if in_stream else 504)
        # OpenAI's clients try again after 5xx unless they are told not to.
        assert in_stream or response.headers["x-should-retry"] == "false"
    await eventually(lambda: rig.fake.running == 0)


async def test_deadline_without_the_verifier_s_help(rig, eventually):
    """A verifier that forgets a deadline is cut by the gateway's own call."""
    rig.fake.behaviour = FakeBehaviour([5, 6, 7], hang_after=1, keeps_deadlines=False)
    assert (await rig.complete("x", timeout=0.3)).status_code == 504
    await eventually(lambda: rig.fake.running == 0)


async def test_deadline_over_grpc(rig, eventually):
    """A deadline in the message ends the call with DEADLINE_EXCEEDED; the call's own frees all."""
    rig.fake.behaviour = FakeBehaviour([5, 6, 7], hang_after=1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await over_grpc(rig, text="x", deadline_seconds=0.2)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert isinstance(error_of(raised.value), DeadlineExceeded)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await over_grpc(rig, text="x", n=2, timeout=0.2)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: rig.fake.running == 0)


@pytest.mark.parametrize("isolated", [True, False])
async def test_keys_keep_caches_apart(make_rig, tmp_path, isolated):
    """Two keys never share a salt unless told to; the tenant is the key's name at both doors."""
    file = tmp_path / "keys"
    tokens = {name: keys.add(name, file) for name in ("ann", "bob")}
    async with make_rig(api_keys=file, isolate_caches=isolated) as rig:
        for key in tokens.values():
            bearer = f"Bearer {key}"
            for fields in ({}, {"cache_salt": "s"}):
                body = {"model": "tiny-chat", "prompt": "x", **fields}
                headers = {"Authorization": bearer}
                await rig.http.post("/v1/completions", json=body, headers=headers)
                await over_grpc(rig, (("authorization", bearer),), text="x", **fields)
        seen = [(got.tenant, got.cache_salt) for got in rig.fake.requests]
        ann, bob = seen[:4], seen[4:]
        assert [tenant for tenant, _ in seen] == ["ann"] * 4 + ["bob"] * 4
        if isolated:
            assert [salt for _, salt in ann] == ["ann/", "ann/", "ann/s", "ann/s"]
            assert not {salt for _, salt in ann} & {salt for _, salt in bob}
        else:
            assert [salt for _, salt in ann] == ["", "", "/s", "/s"]
            assert [salt for _, salt in ann] == [salt for _, salt in bob]


async def test_cached_tokens_in_usage(rig, ids):
    """Cached prompt tokens are told in the body, the usage chunk and gRPC, once for each prompt."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello"), cached=4)
    details = (await rig.complete([5] * 6, n=3)).json()["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 4}
    two = (await rig.complete([[5] * 6, [5] * 3], n=2)).json()["usage"]
    assert two["prompt_tokens_details"]["cached_tokens"] == 7 < two["prompt_tokens"]
    # A stop string ends the verifier's stream before its last message.
    cut = (await rig.complete([5] * 6, stop="e")).json()["usage"]
    assert cut["prompt_tokens_details"]["cached_tokens"] == 4
    prompt = gateway_pb2.TokenIds(ids=[5] * 6)
    *_, last = await over_grpc(rig, token_ids=prompt, sampling=types_pb2.SamplingParams(seed=1))
    assert last.usage.cached_prompt_tokens == 4
    client = openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="unused")
    stream = await client.completions.create(
        model="tiny-chat", prompt=[5] * 6, stream=True, stream_options={"include_usage": True}
    )
    *_, chunk = [chunk async for chunk in stream]
    assert chunk.usage.prompt_tokens_details.cached_tokens == 4
    await client.close()
