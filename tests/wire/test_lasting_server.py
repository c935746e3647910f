"""A call whose name is no text, which ends a server of gRPC's."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipstream.wire.transport import Server, channel, is_serving
from tests.integration.processes import until

NAME = b"/slipst\xf2eam.v1.VerifierService/GetStatus"


async def hit(address: str) -> None:
    """Ends gRPC's server there, and sees it."""
    async with grpc.aio.insecure_channel(address) as raw:
        with pytest.raises(grpc.aio.AioRpcError):
            await raw.unary_unary(NAME)(b"", timeout=20)


async def test_a_name_that_is_no_text_ends_no_other_call():
    """Twice in a row: streams that run go on, calls that come later are served at the same
    address, and another server of the process is left as it is."""
    server, other = (Server("127.0.0.1:0", ["some.Service"]) for _ in range(2))
    address, beside = [f"127.0.0.1:{await each.start()}" for each in (server, other)]
    for each in (server, other):
        await each.set_serving(True)
    untouched = other.grpc._server
    status = health_pb2.HealthCheckResponse.ServingStatus
    async with channel(address) as ours, asyncio.timeout(60):
        watch = health_pb2_grpc.HealthStub(ours).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == status.SERVING
        for _ in range(2):
            before = server.grpc._server
            await hit(address)
            await until(lambda before=before: server.grpc._server is not before)
            await until(lambda: is_serving(address))
        assert await is_serving(address, "some.Service")
        await server.set_serving(False)
        assert (await watch.read()).status == status.NOT_SERVING
        assert not await is_serving(address)
    assert other.grpc._server is untouched
    assert await is_serving(beside)
    await server.stop(0)
    await other.stop(0)


async def test_a_stopped_server_stays_stopped():
    """What was hit just before its stop does not listen again."""
    server = Server("127.0.0.1:0", [])
    address = f"127.0.0.1:{await server.start()}"
    await server.set_serving(True)
    await hit(address)
    async with asyncio.timeout(60):
        await server.stop(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address.split(":"))
