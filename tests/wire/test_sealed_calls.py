"""Seals on real calls: all four kinds, damage in either direction, and peers without seals."""

from __future__ import annotations

import asyncio
import logging

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipstream.bench.faults import FaultProxy
from slipstream.core.errors import Corrupted, InternalError, InvalidRequest, Unavailable
from slipstream.wire import seal, sealed_channel, sealed_server
from slipstream.wire.seal import METADATA_KEY, Seal
from slipstream.wire.status import error_of, rpc_error, streaming
from slipstream.wire.transport import channel, is_serving
from tests.wire.echo import SERVICE, Echo, Stub, serve_plain, serve_sealed

VALUES = [b"", b"a", bytes(range(256)) * 10, bytes(5 * 2**20)]
# The kinds of calls, as a function of a stub and a request that gives all answers.
KINDS = {
    "unary_unary": lambda stub, value: _one(stub.unary_unary(value)),
    "unary_stream": lambda stub, value: _all(stub.unary_stream(value)),
    "unary_written": lambda stub, value: _all(stub.unary_written(value)),
    "stream_unary": lambda stub, value: _one(stub.stream_unary(_each(value, value))),
    "stream_stream": lambda stub, value: _all(stub.stream_stream(_each(value, value))),
}


async def _one(call):
    return [(await call).value]


async def _all(call):
    return [answer.value async for answer in call]


async def _read_all(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def _each(*requests):
    for request in requests:
        yield request


def _answers(kind: str, value: bytes) -> list[bytes]:
    return {"unary_unary": [value], "stream_unary": [value * 2]}.get(kind, [value] * 2)


@pytest.fixture
async def echo():
    return Echo()


@pytest.fixture
async def target(echo):
    async with serve_sealed(echo) as address:
        yield address


@pytest.fixture
async def stub(target):
    async with channel(target) as link:
        yield Stub(link)


def _damage(monkeypatch, direction, damage, number=0):
    """Has `damage` done to the messages of that direction, from that number on, once sealed."""

    class Damaging(Seal):
        def __init__(self, name, method, to, **options):
            super().__init__(name, method, to, **options)
            self.here = to == direction

        def close(self, message):
            number_of_this = int(self.end[0][1])
            sealed = super().close(message)
            return damage(sealed) if self.here and number_of_this >= number else sealed

    monkeypatch.setattr(sealed_channel, "Seal", Damaging)
    monkeypatch.setattr(sealed_server, "Seal", Damaging)


def _flip(sealed: bytes) -> bytes:
    """One bit in its middle."""
    place = len(sealed) // 2
    return sealed[:place] + bytes([sealed[place] ^ 4]) + sealed[place + 1 :]


def _strip(sealed: bytes) -> bytes:
    return sealed[: -seal.SIZE]


def _lines(caplog):
    """Ours: gRPC tells asyncio's log of events that come late, for the loop of an earlier test."""
    ours = (each for each in caplog.records if each.name.startswith("slipstream."))
    return [each for each in ours if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [len(value) for value in VALUES])
async def test_all_kinds_of_calls(stub, echo, kind, size):
    """Empty messages and large ones come through, and neither side sees the seal."""
    value = next(value for value in VALUES if len(value) == size)
    assert await KINDS[kind](stub, BytesValue(value=value)) == _answers(kind, value)
    assert set(echo.heard) == {value}


async def test_what_handlers_and_clients_get_has_no_seal(stub):
    """A message is equal to the one that was sent, with no field that nobody knows."""
    sent = BytesValue(value=b"x")
    assert await stub.unary_unary(sent) == sent
    assert (await stub.unary_unary(sent)).SerializeToString() == sent.SerializeToString()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", ["request", "response"])
@pytest.mark.parametrize("damage", [_flip, _strip])
async def test_damage_is_corrupted_for_the_caller(
    stub, echo, monkeypatch, caplog, kind, direction, damage
):
    """A flipped bit or a lost seal, whichever way: the call fails as Corrupted, which may be tried
    again; it takes one line of the log, and no handler sees the request."""
    _damage(monkeypatch, direction, damage)
    value = bytes(range(200))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await KINDS[kind](stub, BytesValue(value=value))
    error = error_of(raised.value)
    assert type(error) is Corrupted
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert SERVICE in error.message
    if direction == "request":
        assert echo.heard == []
    unsealed_answer = damage is _strip and direction == "response"
    assert len(_lines(caplog)) == (0 if unsealed_answer else 1)
    assert all(line.exc_info is None for line in _lines(caplog))


@pytest.mark.parametrize("direction", ["request", "response"])
async def test_a_long_stream_ends_at_the_damage(stub, monkeypatch, direction):
    """Messages before it were read; then reading and writing fail as Corrupted, again and again,
    and the code and the details say so, too."""
    _damage(monkeypatch, direction, _flip, number=3)
    call = stub.stream_stream()
    for number in range(3):
        await call.write(BytesValue(value=bytes([number])))
        assert (await call.read()).value == bytes([number])
    await call.write(BytesValue(value=b"damaged"))
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert type(error_of(raised.value)) is Corrupted
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.write(BytesValue())
        assert type(error_of(raised.value)) is Corrupted
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert "is not what was sent" in await call.details()
    error = grpc.aio.AioRpcError(await call.code(), None, await call.trailing_metadata())
    assert type(error_of(error)) is Corrupted


@pytest.mark.parametrize("style", ["iterate", "read"])
async def test_a_stream_that_lost_its_end(stub, monkeypatch, style):
    """An answer that ends in order, and early, fails: the trailers tell how many there were."""

    class Longer(Seal):
        end = ((METADATA_KEY, "3"),)

    monkeypatch.setattr(sealed_server, "Seal", Longer)
    call = stub.unary_stream(BytesValue(value=b"x"))
    reading = _all(call) if style == "iterate" else _read_all(call)
    with pytest.raises(grpc.aio.AioRpcError, match="the end of the answer") as raised:
        await reading
    assert type(error_of(raised.value)) is Corrupted


async def test_an_error_is_still_the_servers(stub, monkeypatch):
    """What a handler raises arrives as before, also where it has sent messages."""

    async def refuse(self, request, context):
        yield request
        raise InvalidRequest("not like that")

    monkeypatch.setattr(Echo, "UnaryStream", streaming(refuse))
    async with serve_sealed(Echo()) as address, channel(address) as link:
        call = Stub(link).unary_stream(BytesValue())
        await call.read()
        with pytest.raises(grpc.aio.AioRpcError, match="not like that") as raised:
            await call.read()
    assert type(error_of(raised.value)) is InvalidRequest


@pytest.mark.parametrize("kind", KINDS)
async def test_a_foreign_client(target, kind):
    """A client that knows nothing of seals is served as ever; it skips the seal of what it gets."""
    async with grpc.aio.insecure_channel(target) as link:
        for value in (b"", b"foreign"):
            assert await KINDS[kind](Stub(link), BytesValue(value=value)) == _answers(kind, value)
        health = health_pb2_grpc.HealthStub(link)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1


def _raw(link, path="UnaryUnary"):
    return link.unary_unary(f"/{SERVICE}/{path}")


async def test_foreign_clients_may_seal(target, echo):
    """A plain CRC-32 is checked where it is; bytes that are no message are the client's fault."""
    message = BytesValue(value=b"foreign").SerializeToString()
    async with grpc.aio.insecure_channel(target) as link:
        sealed = Seal("", "", "request").close(message)
        assert BytesValue.FromString(await _raw(link)(sealed)).value == b"foreign"
        assert echo.heard == [b"foreign"]
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _raw(link)(_flip(sealed))
        assert type(error_of(raised.value)) is Corrupted
        with pytest.raises(grpc.aio.AioRpcError, match="cannot be read") as raised:
            await _raw(link)(b"\xff\xff")
        assert type(error_of(raised.value)) is InvalidRequest
        # Who says that it seals has to.
        with pytest.raises(grpc.aio.AioRpcError, match="without its checksum") as raised:
            await _raw(link)(message, metadata=((METADATA_KEY, "name"),))
        assert type(error_of(raised.value)) is Corrupted
    assert echo.heard == [b"foreign"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_without_seals(echo, kind):
    """Its answers are refused, with an error that names the server and the likely reason."""
    async with serve_plain(echo) as address, channel(address) as link:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await KINDS[kind](Stub(link), BytesValue(value=b"x"))
    error = error_of(raised.value)
    assert type(error) is Corrupted
    assert address in error.message
    assert "no Slipstream of this version" in error.message


async def test_a_call_is_used_as_any_other(stub):
    """Awaiting twice, metadata of the caller's, a synchronous iterator, cancelling, a deadline."""
    call = stub.unary_unary(BytesValue(value=b"x"), metadata=(("own", "1"),), timeout=20)
    assert await call is await call
    assert await call.code() is grpc.StatusCode.OK
    call = stub.stream_unary(iter([BytesValue(value=b"a"), BytesValue(value=b"b")]))
    assert (await call).value == b"ab"
    call = stub.stream_stream()
    await call.write(BytesValue(value=b"x"))
    await call.read()
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert call.cancelled()
    call = stub.stream_stream(timeout=0.05)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.write(BytesValue())
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_channel_is_used_as_any_other(target):
    """Connecting, its state, closing; health checks go over it."""
    async with channel(target) as link:
        idle = link.get_state(try_to_connect=True)
        assert idle is grpc.ChannelConnectivity.IDLE
        async with asyncio.timeout(20):
            await link.wait_for_state_change(idle)
            await link.channel_ready()
        assert link.get_state() is grpc.ChannelConnectivity.READY
    assert link.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    assert await is_serving(target, SERVICE)


async def test_a_connection_that_takes_its_time(target):
    """A call waits for one whose handshake takes longer than usual, as on a busy machine."""
    async with FaultProxy(target) as proxy:
        address = await proxy.start()
        proxy.delay(0.4)
        async with channel(address) as link:
            assert await Stub(link).one(b"x") == b"x"


@pytest.mark.parametrize("status", ["INTERNAL", "UNKNOWN", "DATA_LOSS"])
def test_nonsense_on_the_connection_may_be_tried_again(status):
    """gRPC says so of frames that it cannot read; our own servers' errors carry a code word."""
    broken = grpc.aio.AioRpcError(grpc.StatusCode[status], details="Failed parsing HTTP/2")
    assert type(error_of(broken)) is Unavailable
    assert type(error_of(rpc_error(InternalError("our fault")))) is InternalError
