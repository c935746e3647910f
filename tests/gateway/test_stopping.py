"""A gateway that is told to stop: what runs ends well, and who comes late is told so."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipstream.wire.fakes import FakeVerifier
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.transport import channel
from tests.gateway.conftest import Rig
from tests.gateway.kept import events_of, substance

WORDS = "Hello, world! Stop here and there."
ASKED = {"model": "tiny-chat", "prompt": "x"}


@dataclass
class Stopping:
    """A gateway, how it is told to stop, and what ends when it has."""

    rig: Rig
    told: asyncio.Event
    over: asyncio.Task[None]


@contextlib.asynccontextmanager
async def stoppable(make_rig, *tokens, **settings):
    """In a task of its own, so that a test can look on."""
    told, made = asyncio.Event(), asyncio.Queue()

    async def run():
        async with make_rig(*tokens, **settings) as rig:
            made.put_nowait(rig)
            await told.wait()

    over = asyncio.create_task(run())
    async with asyncio.timeout(20):
        rig = await made.get()
    try:
        yield Stopping(rig, told, over)
    finally:
        told.set()
        async with asyncio.timeout(20):
            await over


class Connection:
    """One of a client that decides itself what it sends, and when."""

    def __init__(self, reader, writer) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, rig):
        return cls(*await asyncio.open_connection("127.0.0.1", rig.running.http_port))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def ask(self, method: str, path: str, content: bytes = b"") -> None:
        length = f"Content-Length: {len(content)}\r\n" if content else ""
        self.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode() + content)

    async def head(self) -> bytes:
        async with asyncio.timeout(20):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Up to the end of the connection, which must come in order."""
        async with asyncio.timeout(20):
            return await self._reader.read()

    async def last(self) -> tuple[int, httpx.Headers, dict]:
        """Status, headers and body of the last answer of a connection that ends behind it."""
        head, _, body = (await self.rest()).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines])
        assert headers["connection"] == "close"
        return int(status.split()[1]), headers, json.loads(body or b"{}")


async def asked(rig, method, path, content=b""):
    """The answer on a new connection."""
    connection = await Connection.open(rig)
    connection.ask(method, path, content)
    return await connection.last()


def is_refused(answer):
    status, headers, body = answer
    assert (status, body["error"]["code"]) == (503, "draining")
    assert "about to stop" in body["error"]["message"]
    assert headers["retry-after"] == "1"


def connections(rig):
    """As the server has them: nobody else knows what has come in."""
    return rig.running.serving.get_coro().cr_frame.f_locals["self"].server_state.connections


@pytest.fixture
def go(monkeypatch):
    """Until it is set, verifiers send one message of each answer, and no more."""
    event, respond = asyncio.Event(), FakeVerifier._respond

    async def held(fake, request, behaviour):
        async for response in respond(fake, request, behaviour):
            yield response
            await event.wait()

    monkeypatch.setattr(FakeVerifier, "_respond", held)
    return event


async def over_grpc(stub):
    request = gateway_pb2.GatewayServiceGenerateRequest(text="x")
    return "".join([response.text async for response in stub.Generate(request, timeout=60)])


async def test_what_runs_ends_well_and_nothing_begins(make_rig, ids, eventually, go):
    """Streams and whole answers come to their end, however long after; meanwhile the process lives,
    is not ready, and tells new requests on whatever connection to come back. Then it is gone."""
    body = json.dumps(ASKED).encode()
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(stoppable(make_rig, ids(WORDS), stop_grace=120))
        rig = gateway.rig
        link = await stack.enter_async_context(channel(rig.grpc_address))
        stub = gateway_pb2_grpc.GatewayServiceStub(link)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=rig.url, timeout=60, trust_env=False, verify=False)
        )
        running = [
            asyncio.create_task(http.post("/v1/completions", json={**ASKED, "stream": True})),
            asyncio.create_task(http.post("/v1/completions", json=ASKED)),
        ]
        call = asyncio.create_task(over_grpc(stub))
        fresh, idle, half = [await Connection.open(rig) for _ in range(3)]
        for kept in (idle, half):
            kept.ask("GET", "/health")
            assert b"200" in await kept.head()
        half.send(b"POST /v1/completions HTTP/1.1\r\n")
        await eventually(lambda: any(one._in_head for one in connections(rig)))
        await eventually(lambda: rig.fake.running == 3)

        gateway.told.set()
        assert await idle.rest() == b""
        status, _, ready = await asked(rig, "GET", "/ready")
        assert (status, ready["ready"], ready["missing"]) == (503, False, ["stopping"])
        assert (await asked(rig, "GET", "/health"))[0] == 200
        assert (await asked(rig, "GET", "/v1/models"))[0] == 200
        fresh.ask("POST", "/v1/completions", body)
        half.send(b"Host: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        for refused in (
            await fresh.last(),
            await half.last(),
            await asked(rig, "POST", "/v1/chat/completions", body),
            # So much that it is still coming in when the answer is known.
            await asked(rig, "POST", "/v1/completions", b"x" * (8 << 20)),
            await asked(rig, "GET", "/v1/generations/cmpl-x/events"),
        ):
            is_refused(refused)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await over_grpc(stub)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE

        assert not any(each.done() for each in (*running, call, gateway.over))
        go.set()
        async with asyncio.timeout(20):
            stream, whole = await asyncio.gather(*running)
            assert await call == WORDS
            await gateway.over
        found = substance(events_of(stream.text))
        assert (found["choices"][0]["text"], found["done"]) == (WORDS, 1)
        assert whole.json()["choices"][0]["text"] == WORDS
        with pytest.raises(OSError, match="refused|failed"):
            await Connection.open(rig)


async def test_where_nothing_runs_it_ends(make_rig, eventually):
    """However long its grace is: connections that wait, or have half of a request, and whoever
    watches its health do not hold it up."""
    async with stoppable(make_rig, stop_grace=60) as gateway:
        rig = gateway.rig
        idle, half = [await Connection.open(rig) for _ in range(2)]
        idle.ask("GET", "/health")
        assert b"200" in await idle.head()
        half.send(b"POST /v1/completions HTTP/1.1\r\n")
        await eventually(lambda: any(one._in_head for one in connections(rig)))
        async with channel(rig.grpc_address) as link:
            watch = health_pb2_grpc.HealthStub(link).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            gateway.told.set()
            async with asyncio.timeout(20):
                assert await idle.rest() == await half.rest() == b""
                await gateway.over
