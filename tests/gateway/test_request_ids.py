"""Names of requests, and spans that go through the gateway."""

from __future__ import annotations

import contextlib

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import server
from slipstream.core.errors import Overloaded
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.telemetry.tracing import RecordedTracing
from slipstream.wire.transport import channel

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("given", ["abc-1.2:3_X", "a" * 128])
async def test_a_clients_name_is_kept(rig, given, caplog):
    """It comes back in the header and in the answer's id, and stands in the log."""
    caplog.set_level("INFO")
    body = {"model": "tiny-chat", "prompt": "x"}
    answer = await rig.http.post("/v1/completions", json=body, headers={"X-Request-Id": given})
    assert answer.headers["X-Request-Id"] == given
    assert answer.json()["id"] == f"cmpl-{given}"
    assert rig.fake.requests[0].request_id == f"cmpl-{given}-0"
    assert f"cmpl-{given}: " in caplog.text


@pytest.mark.parametrize("given", [None, "a" * 129, "a b", "é", 'x"y'])
async def test_other_names_are_replaced(rig, given):
    """Without one, or with one that is long or strange, the request gets a new one; so does
    one that is refused."""
    headers = {} if given is None else {"X-Request-Id": given.encode()}
    body = {"model": "tiny-chat", "prompt": "x"}
    answer = await rig.http.post("/v1/completions", json=body, headers=headers)
    name = answer.headers["X-Request-Id"]
    assert len(name) == 32
    assert answer.json()["id"] == f"cmpl-{name}"
    refused = await rig.http.post("/v1/completions", json={}, headers=headers)
    assert refused.status_code == 400
    assert len(refused.headers["X-Request-Id"]) == 32 != name


async def test_a_request_is_one_span_that_the_verifier_continues(make_rig, monkeypatch):
    """The client's trace goes on in the gateway's span, and that one's in the verifier's call."""
    exporter = InMemorySpanExporter()
    tracing = RecordedTracing("gateway", exporter)
    monkeypatch.setattr(server, "tracing_to", lambda *_: contextlib.nullcontext(tracing))
    async with make_rig() as rig:
        rig.fake.behaviour = FakeBehaviour([5, 6, 7])
        parent = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        body = {"model": "tiny-chat", "prompt": "x", "seed": 4, "stream": True, "max_tokens": 3}
        await rig.http.post("/v1/completions", json=body, headers=parent)
        sent = rig.fake.metadata[0]["traceparent"]
        rig.fake.behaviour = FakeBehaviour([5], error=Overloaded("full"))
        await rig.http.post("/v1/completions", json=body, headers=parent)
    tracing._provider.force_flush()
    served, failed = exporter.get_finished_spans()
    assert served.name == failed.name == "text_completion tiny-chat"
    assert format(served.context.trace_id, "032x") == TRACE
    assert format(served.parent.span_id, "016x") == CALLER
    assert sent.split("-")[1:3] == [TRACE, format(served.context.span_id, "016x")]
    told = served.attributes
    assert told["gen_ai.request.seed"] == 4
    assert told["gen_ai.usage.output_tokens"] == 3
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert [event.name for event in served.events] == ["first token"]
    assert failed.attributes["error.type"] == Overloaded("").code
    tracing.close()


@pytest.mark.parametrize("given", ["mine-1.2:3_X", "a" * 128, "chatty"])
async def test_a_grpc_client_s_name_is_kept(rig, given):
    """The request's own id, in every message of the answer and at the verifier."""
    assert await grpc_ids(rig, request_id=given) == {given}
    assert rig.fake.requests[0].request_id == f"{given}-0"


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "two\nlines", "nul\0", "é"])
async def test_other_grpc_names_are_replaced(rig, given, caplog):
    """As over HTTP: one that is missing, long or strange reaches neither the log nor the verifier;
    the answer says which one holds."""
    caplog.set_level("INFO")
    (name,) = await grpc_ids(rig, request_id=given)
    assert len(name) == 32
    assert rig.fake.requests[0].request_id == f"{name}-0"
    assert not given or given not in caplog.text
    assert f"{name}: " in caplog.text


async def grpc_ids(rig, **fields):
    async with channel(rig.grpc_address) as link:
        request = gateway_pb2.GatewayServiceGenerateRequest(text="x", **fields)
        call = gateway_pb2_grpc.GatewayServiceStub(link).Generate(request, timeout=10)
        return {response.request_id async for response in call}


async def test_a_span_s_operation_is_what_was_asked_not_what_it_is_called(make_rig, monkeypatch):
    """A text that its client calls chat-1 is a text; a chat that has another name is a chat."""
    exporter = InMemorySpanExporter()
    tracing = RecordedTracing("gateway", exporter)
    monkeypatch.setattr(server, "tracing_to", lambda *_: contextlib.nullcontext(tracing))
    async with make_rig() as rig:
        await grpc_ids(rig, request_id="chat-1")
        message = gateway_pb2.ChatMessage(role="user", content="x")
        async with channel(rig.grpc_address) as link:
            asked = gateway_pb2.GatewayServiceGenerateRequest(
                chat=gateway_pb2.Chat(messages=[message]), request_id="mine"
            )
            await gateway_pb2_grpc.GatewayServiceStub(link).Generate(asked, timeout=10).read()
        await rig.chat("x")
    tracing._provider.force_flush()
    told = [span.attributes["gen_ai.operation.name"] for span in exporter.get_finished_spans()]
    assert told == ["text_completion", "chat", "chat"]
    tracing.close()
