"""How many requests the front door takes, and what the others are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from gateway import admission, keys
from gateway.metrics import Metrics
from slipstream.core.errors import Overloaded
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.telemetry.scraped import values_of


async def over_grpc(rig, metadata=()):
    async with channel(rig.grpc_address) as link:
        stub = gateway_pb2_grpc.GatewayServiceStub(link)
        request = gateway_pb2.GatewayServiceGenerateRequest(text="x")
        return [
            response async for response in stub.Generate(request, timeout=10, metadata=metadata)
        ]


async def test_the_verifier_s_hint_is_passed_on(rig):
    """A full verifier becomes 429 with its own hint, in seconds and milliseconds, at both doors."""
    for hint, seconds, milliseconds in (
        (2.25, "3", "2250"),
        (0.0301, "1", "31"),
        (None, "1", "1000"),
    ):
        rig.fake.behaviour = FakeBehaviour([5], error=Overloaded("queue is full", retry_after=hint))
        response = await rig.complete("x", stream=True)
        assert response.status_code == 429
        assert response.json()["error"]["type"] == "overloaded_error"
        assert response.headers["retry-after"] == seconds
        if hint != 0.0301:
            assert response.headers["retry-after-ms"] == milliseconds
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await over_grpc(rig)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        told = error_of(raised.value).retry_after
        assert told == (None if hint is None else pytest.approx(hint, abs=1e-3))


async def test_the_gateway_s_own_bound(make_rig, eventually, monkeypatch):
    """Beyond --max-requests both doors refuse before a body is read, and take again after."""
    # Promises pass with time.
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: 100.0))
    async with make_rig(FakeBehaviour([5, 6], hang_after=1), max_requests=2) as rig:
        held = [asyncio.create_task(rig.complete("x", stream=bool(i))) for i in range(2)]
        await eventually(lambda: rig.fake.running == 2)
        refused = [await rig.complete("x"), await rig.chat("x"), await rig.complete("{broken")]
        for response in refused:
            assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
            assert int(response.headers["retry-after"]) >= 1
        # Those who come later are sent away for longer: places become free one by one.
        waits = [int(response.headers["retry-after-ms"]) for response in refused]
        assert waits == sorted(set(waits))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await over_grpc(rig)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_of(raised.value).retry_after > 0
        # What costs nothing is always answered.
        for path in ("/v1/models", "/ready", "/health", "/metrics"):
            assert (await rig.http.get(path)).status_code == 200
        assert len(rig.fake.requests) == 2
        for task in held:
            task.cancel()
        await eventually(lambda: rig.fake.running == 0)
        rig.fake.behaviour = FakeBehaviour([5])
        await rig.until_taken(lambda: rig.complete("x"))
        for _ in range(5):
            assert (await rig.complete("x")).status_code == 200
            assert await over_grpc(rig)


async def test_refused_without_reading_the_body(make_rig, eventually):
    """A refusal does not wait for the body, and the connection can be used again."""
    async with make_rig(FakeBehaviour([5, 6], hang_after=1), max_requests=1) as rig:
        held = asyncio.create_task(rig.complete("x"))
        await eventually(lambda: rig.fake.running == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.running.http_port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
        writer.write(head + b"x" * 1000)
        async with asyncio.timeout(20):
            assert b" 429 " in await reader.readline()
        writer.close()
        held.cancel()


async def test_bound_of_one_key(make_rig, tmp_path, eventually):
    """One key's requests do not take the places of another's."""
    file = tmp_path / "keys"
    ann, bob = (keys.add(name, file) for name in ("ann", "bob"))
    behaviour = FakeBehaviour([5, 6], hang_after=1)
    async with make_rig(behaviour, api_keys=file, max_requests_per_key=1) as rig:

        async def ask(key):
            body = {"model": "tiny-chat", "prompt": "x"}
            headers = {"Authorization": f"Bearer {key}"}
            return await rig.http.post("/v1/completions", json=body, headers=headers)

        held = asyncio.create_task(ask(ann))
        await eventually(lambda: rig.fake.running == 1)
        rig.fake.behaviour = FakeBehaviour([5])
        assert (await ask(ann)).status_code == 429
        with pytest.raises(grpc.aio.AioRpcError):
            await over_grpc(rig, (("authorization", f"Bearer {ann}"),))
        assert (await ask(bob)).status_code == 200
        assert (await ask("unknown")).status_code == 401
        held.cancel()
        await eventually(lambda: rig.fake.running == 0)
        await rig.until_taken(lambda: ask(ann))
        assert (await ask(ann)).status_code == 200


def test_retry_after_follows_the_drain_rate(monkeypatch):
    """Places that take d seconds at n at once are promised every d/n seconds, to half a minute."""
    now = 100.0
    monkeypatch.setattr(admission.time, "monotonic", lambda: now)
    metrics = Metrics()
    gate = admission.Admission(4, 0, metrics)
    for _ in range(50):
        place = gate.enter("")
        now += 2.0
        with place:
            pass
    places = [gate.enter("") for _ in range(4)]

    def hint():
        with pytest.raises(Overloaded) as raised:
            gate.enter("")
        return raised.value.retry_after

    assert [hint() for _ in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    now += 1.0
    assert hint() == pytest.approx(1.5)
    assert max(hint() for _ in range(100)) == pytest.approx(30.0)
    # Promises pass with time.
    now += 1000.0
    assert hint() == pytest.approx(0.5)
    values = values_of(metrics.render().decode())
    assert values['slipstream:requests_refused_total{bound="gateway"}'] == 106
    for place in places:
        with place:
            pass
    assert gate.running == 0
