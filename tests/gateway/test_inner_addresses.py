"""Inner addresses are for operators: in the log they are, in what clients are told they are not."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest

from gateway.verifiers.broken import of_failure
from gateway.verifiers.served import Lost
from slipstream.core import errors
from slipstream.core.errors import InvalidRequest, Overloaded, SlipstreamError, StoreUnavailable
from slipstream.store import GuardedStore
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of, rpc_error
from slipstream.wire.transport import channel
from tests.gateway.kept import TroubledStore

ADDRESS = "10.1.2.3:50052"
# What a verifier says with these is written for clients.
FOR_CLIENTS = (InvalidRequest, Overloaded, errors.StreamUnread)


def kinds(root: type[SlipstreamError]) -> list[type[SlipstreamError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]


INNER = [kind for kind in kinds(SlipstreamError)[1:] if not issubclass(kind, FOR_CLIENTS)]


@pytest.mark.parametrize("kind", INNER)
def test_every_error_of_a_verifier(kind: type[SlipstreamError]) -> None:
    """Clients are told our own words, whatever error it is; operators the verifier's, too."""
    found = of_failure(rpc_error(kind(f"no way to {ADDRESS}")), "10.9.9.9:50051")
    error = found.error if isinstance(found, Lost) else found
    assert isinstance(error, SlipstreamError)
    assert error.message
    assert "10." not in error.message
    if kind is not errors.DeadlineExceeded:
        # That is the request's own deadline.
        assert f"the verifier at 10.9.9.9:50051 said: no way to {ADDRESS}" in str(error)


@pytest.mark.parametrize("status", list(grpc.StatusCode))
def test_every_status_of_the_transport(status: grpc.StatusCode) -> None:
    """What a connection ends with by itself, or bytes that changed on the way, is a lost verifier,
    whatever its status: the request goes on elsewhere, and no client is told what gRPC said."""
    none = grpc.aio.Metadata()
    failure = grpc.aio.AioRpcError(status, none, none, f"larger than max, from {ADDRESS}")
    found = of_failure(failure, "10.9.9.9:50051")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        # Nobody but the request itself sets one.
        assert isinstance(found, errors.DeadlineExceeded)
    else:
        assert isinstance(found, Lost)
        assert (found.reason, found.error.message) == (
            "connection",
            "the verifier was lost; try again soon",
        )


async def over_grpc(rig) -> grpc.aio.AioRpcError:
    """What a call ends with."""
    async with channel(rig.grpc_address) as link:
        stub = gateway_pb2_grpc.GatewayServiceStub(link)
        request = gateway_pb2.GatewayServiceGenerateRequest(text="x")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stub.Generate(request, timeout=20):
                pass
    return raised.value


async def answers(rig):
    """What a failing request is told: whole, as a stream, and over gRPC."""
    whole, stream = await rig.complete("x"), await rig.complete("x", stream=True)
    failure = await over_grpc(rig)
    return whole, stream, error_of(failure), f"{failure.details()} {failure.trailing_metadata()}"


@pytest.mark.parametrize("kind", [errors.InternalError, errors.Unavailable, errors.ModelMismatch])
async def test_what_a_verifier_says(make_rig, caplog, kind):
    """An error before the first token, and one in mid-stream, at both doors: the log has all of
    it, and clients are told no address."""
    async with make_rig(max_failovers=0) as rig:
        for after in (0, 1):
            said = f"{after}: no way to {ADDRESS}"
            rig.fake.behaviour = FakeBehaviour([5, 6, 7], error=kind(said), error_after=after)
            caplog.clear()
            with caplog.at_level(logging.INFO):
                whole, stream, error, raw = await answers(rig)
            assert whole.status_code == kind.http_status
            assert stream.status_code == (200 if after else whole.status_code)
            assert '"error"' in stream.text
            assert error.http_status == whole.status_code
            for told in (whole.text, stream.text, raw):
                assert ADDRESS not in told
                assert rig.fake.address not in told
            line = f"the verifier at {rig.fake.address} said: {said}"
            assert len([each for each in caplog.messages if line in each]) >= 3


async def test_what_is_for_clients(rig):
    """What a verifier says of the request, or of its load, they are told as it is."""
    for kind in (errors.InvalidParameter, Overloaded):
        rig.fake.behaviour = FakeBehaviour([5], error=kind(f"{kind.__name__} of yours"))
        _, _, error, _ = await answers(rig)
        assert (type(error), error.message) == (kind, f"{kind.__name__} of yours")


async def test_a_lost_verifier(make_rig, caplog):
    """One that dies in mid-stream, and that nobody can reach from then on."""
    async with make_rig(FakeBehaviour([5] * 9, hang_after=3)) as rig:
        address = rig.fake.address
        running = asyncio.create_task(rig.complete("x", stream=True))
        failing = asyncio.create_task(over_grpc(rig))
        async with asyncio.timeout(20):
            while rig.fake.sent.total() < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        with caplog.at_level(logging.INFO):
            await rig.fake.stop()
            stream, failure = await running, await failing
            await rig.until_states(lost=1)
            whole, later, error, raw = await answers(rig)
        assert '"code":"unavailable"' in stream.text
        assert (whole.status_code, later.status_code) == (503, 503)
        assert "no verifier serves now" in error.message
        for told in (stream.text, str(failure.details()), whole.text, later.text, raw):
            assert address not in told
        assert f"try again soon (the verifier at {address}" in caplog.text
        assert address in (await rig.http.get("/ready")).text


async def test_the_store(make_rig, caplog):
    """Where the store cannot be reached, its host is in the log and in `/ready`."""

    class Away(TroubledStore):
        async def guarded(self, name, *args, **kwargs):
            raise StoreUnavailable(f"Redis cannot be reached: connecting to {ADDRESS}")

        async def ping(self):
            raise StoreUnavailable(f"Redis cannot be reached: connecting to {ADDRESS}")

    for failures in (10_000, 1):
        caplog.clear()
        guard = GuardedStore(Away(), failures=failures)
        with caplog.at_level(logging.INFO):
            if failures == 1:
                await guard.start()
            async with make_rig(store=guard) as rig:
                first = {"session_id": "s", "session_turn": 0}
                turn = await rig.chat(**first)
                assert turn.json()["session"]["stored"] is False
                told = [turn.text, (await rig.chat(**first, stream=True)).text]
                told.append((await rig.complete("x", stream=True)).text)
                for refused in (
                    await rig.http.get("/v1/sessions"),
                    await rig.chat(session_id="s"),
                    await rig.http.get("/v1/generations/x"),
                    await rig.complete("x", background=True),
                ):
                    assert refused.status_code == 503
                    assert refused.json()["error"]["code"] == "store_unavailable"
                    told.append(refused.text)
            await guard.close()
        assert not [text for text in told if ADDRESS in text]
        assert ADDRESS in caplog.text
        assert failures > 1 or ADDRESS in guard.detail
