"""Clients that do not read, or are gone: what they cost, and whom."""

from __future__ import annotations

import asyncio
import json
import logging
import socket

import grpc
import pytest

from slipstream.core.errors import StreamUnread
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.transport import channel
from tests.telemetry.scraped import values_of

# Each message carries so many tokens with 20 log probabilities each: some 100 KB as an event.
CHUNK = 50
TOKENS = 100_000
ENDLESS = FakeBehaviour([50] * TOKENS, chunks=(CHUNK,))
UNREAD = 'slipstream:streams_cut_total{reason="unread"}'


async def ask(rig, body):
    """A connection with the least receive buffer that has sent `body` and read nothing."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setblocking(False)
    await loop.sock_connect(sock, ("127.0.0.1", rig.running.http_port))
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
    await loop.sock_sendall(sock, head.encode() + raw)
    return sock


async def read_all(sock):
    async with asyncio.timeout(20):
        while await asyncio.get_running_loop().sock_recv(sock, 65536):
            pass


def endless(**fields):
    asked = {"model": "tiny-chat", "prompt": "x", "max_tokens": TOKENS, "logprobs": 20}
    return {**asked, "stream": True, **fields}


async def steady(rig):
    """Waits until the verifier's streams stand still; returns the tokens they have sent."""
    before = -1
    while (now := rig.fake.sent.total()) != before or not now:
        before = now
        await asyncio.sleep(0.25)
    return now


@pytest.mark.parametrize("n", [1, 3])
async def test_unread_http_stream(make_rig, eventually, caplog, n):
    """A stream that nobody reads stands still within bounds, is cut with a reason, frees all.

    Meanwhile another client's stream goes on.
    """
    caplog.set_level(logging.WARNING, "gateway")
    async with make_rig(ENDLESS, context_length=2 * TOKENS, send_timeout=3.0) as rig:
        sock = await ask(rig, endless(n=n))
        await eventually(lambda: rig.fake.running == n)
        await steady(rig)
        rig.fake.behaviour = FakeBehaviour([5, 6, 7])
        for stream in (True, False):
            async with asyncio.timeout(20):
                assert (await rig.complete("x", stream=stream)).status_code == 200
        # The kernel would cut it, too, but later and without the line below.
        await eventually(lambda: rig.fake.running == 0)
        # A client's socket and the verifier's stream hold so much; nothing in between grows.
        assert rig.fake.sent.total() < 5000 * n
        # The socket is cut, not closed when all is read.
        with pytest.raises(ConnectionResetError):
            await read_all(sock)
        assert values_of((await rig.http.get("/metrics")).text)[UNREAD] == 1
        [line] = [record.getMessage() for record in caplog.records if "gateway" in record.name]
        assert line.startswith("cmpl-")
        assert "read nothing for 3 s" in line
        sock.close()


async def test_slow_stream_that_nobody_reads(make_rig, eventually, caplog):
    """A stream too slow to fill the buffers is cut by the kernel; that is told and counted, too."""
    slow = FakeBehaviour([50] * TOKENS, chunks=(1,), delay=0.05)
    async with make_rig(slow, context_length=2 * TOKENS, send_timeout=1.0) as rig:
        with caplog.at_level(logging.WARNING, "gateway"):
            sock = await ask(rig, endless())
            await eventually(lambda: rig.fake.running == 1)
            await eventually(lambda: rig.fake.running == 0)
        assert values_of((await rig.http.get("/metrics")).text)[UNREAD] == 1
        [line] = [record.getMessage() for record in caplog.records if "gateway" in record.name]
        assert "read nothing for 1 s" in line
        sock.close()


async def test_unread_grpc_stream(make_rig, eventually):
    """The same over gRPC: the call ends with DEADLINE_EXCEEDED once somebody looks."""
    async with make_rig(ENDLESS, context_length=2 * TOKENS, send_timeout=2.0) as rig:
        async with channel(rig.grpc_address, unread_bytes=65536) as link:
            stub = gateway_pb2_grpc.GatewayServiceStub(link)
            stop = types_pb2.StopConditions(max_tokens=TOKENS)
            request = gateway_pb2.GatewayServiceGenerateRequest(text="x", stop=stop, logprobs=20)
            call = stub.Generate(request)
            call = call.__aiter__()
            await anext(call)
            assert await steady(rig) < 5000
            rig.fake.behaviour = FakeBehaviour([5])
            assert (await rig.complete("x")).status_code == 200
            await eventually(lambda: rig.fake.running == 0)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                _ = [response async for response in call]
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert values_of((await rig.http.get("/metrics")).text)[UNREAD] == 1


async def test_cut_by_the_verifier(rig):
    """Where the verifier is sooner to cut a stream, the client is told so, as of no fault in its
    request, and the gateway counts it like its own cuts."""
    rig.fake.behaviour = FakeBehaviour([50] * 9, error=StreamUnread("read nothing"), error_after=4)
    for stream in (True, False):
        response = await rig.complete("x", stream=stream)
        told = response.text.strip().split("\n\n")[-1].removeprefix("data: ")
        error = json.loads(told)["error"]
        assert (error["code"], error["type"]) == ("stream_unread", "server_error")
        assert error["param"] is None
    assert values_of((await rig.http.get("/metrics")).text)[UNREAD] == 2


async def test_slow_but_alive(make_rig):
    """A client that reads in bits, each within the time allowed, gets everything."""
    behaviour = FakeBehaviour([50] * 500, chunks=(CHUNK,))
    async with make_rig(behaviour, context_length=1000, send_timeout=2.5) as rig:
        sock = await ask(rig, endless(max_tokens=500))
        loop, received = asyncio.get_running_loop(), b""
        for _ in range(5):
            await asyncio.sleep(0.55)
            received += await loop.sock_recv(sock, 65536)
        while not received.endswith(b"0\r\n\r\n"):
            async with asyncio.timeout(20):
                received += await loop.sock_recv(sock, 2**20)
        assert received.count(b'"token_logprobs"') >= 500 // CHUNK
        assert b"data: [DONE]" in received
        sock.close()


async def test_half_a_request(make_rig, eventually):
    """A client that leaves while it sends its body holds no place."""
    async with make_rig(max_requests=1) as rig:
        _, writer = await asyncio.open_connection("127.0.0.1", rig.running.http_port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head + b'{"model"')
        await writer.drain()

        async def full():
            return (await rig.complete("x")).status_code == 429

        async with asyncio.timeout(20):
            while not await full():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        writer.close()
        async with asyncio.timeout(20):
            while await full():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
