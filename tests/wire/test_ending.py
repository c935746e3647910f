"""Writes to a call that the server has ended: what the server said, not what gRPC makes of it."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from slipstream.core.errors import InvalidRequest, Unavailable
from slipstream.wire import ending
from slipstream.wire.status import error_of, streaming
from slipstream.wire.transport import channel
from tests.wire.echo import Echo, Stub, serve_sealed


class Refusing(Echo):
    """Ends a stream at its first request: in order if that is empty, else with an error."""

    @streaming
    async def StreamStream(self, requests, context):  # noqa: N802
        async for request in requests:
            if not request.value:
                return
            raise InvalidRequest("not like that")
        yield BytesValue()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine's server is no silent one."""
    monkeypatch.setattr(ending, "_WAIT_SECONDS", 20.0)


@pytest.fixture
async def stub():
    async with serve_sealed(Refusing()) as address, channel(address) as link:
        yield Stub(link)


def _fail_a_write(call):
    """What grpc.aio does where the core refuses a message."""
    call._call._cython_call.set_internal_error("the core says no")


async def _ended(call):
    async with asyncio.timeout(20):
        while not call.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def _open(stub, value):
    call = stub.stream_stream()
    await call.write(BytesValue(value=value))
    return call


async def _iterate(call):
    async for _ in call:
        pass


WAYS = {
    "read": lambda call: call.read(),
    "write": lambda call: call.write(BytesValue(value=b"more")),
    "iterate": _iterate,
}


async def test_writing_beside_the_end(stub):
    """Whoever reads gets the server's error, however the writes of another task end; and they end
    with it, too."""

    async def write(call):
        while True:
            await call.write(BytesValue(value=b"x"))

    for _ in range(40):
        call = stub.stream_stream()
        writing = asyncio.create_task(write(call))
        for raising in (call.read(), writing, call.write(BytesValue())):
            with pytest.raises(grpc.aio.AioRpcError, match="not like that") as raised:
                await raising
            assert type(error_of(raised.value)) is InvalidRequest


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", ["status first", "failure first"])
async def test_a_failed_write_hides_nothing(stub, way, order):
    """A write may fail just after the server's status has come, or just before: its error is what
    reading and writing raise, and what the call says of itself."""
    call = await _open(stub, b"x")
    if order == "status first":
        await _ended(call)
    _fail_a_write(call)
    with pytest.raises(grpc.aio.AioRpcError, match="not like that") as raised:
        await WAYS[way](call)
    assert type(error_of(raised.value)) is InvalidRequest
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await call.details() == "not like that"
    assert dict(await call.trailing_metadata())


async def test_an_end_in_order_stays_one(stub):
    """Where the server has ended the call in order, reading ends so, too, and writing is refused
    as a mistake of the writer's."""
    call = await _open(stub, b"")
    await _ended(call)
    _fail_a_write(call)
    assert await call.read() is grpc.aio.EOF
    with pytest.raises(asyncio.InvalidStateError):
        await call.write(BytesValue())


async def test_the_wait_for_the_servers_status_ends(monkeypatch):
    """A write that fails while the server is silent: after a moment, an error that says to try
    again."""
    monkeypatch.setattr(ending, "_WAIT_SECONDS", 0.05)
    async with serve_sealed(Echo()) as address, channel(address) as link:
        call = await _open(Stub(link), b"x")
        await call.read()
        _fail_a_write(call)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert type(error_of(raised.value)) is Unavailable
