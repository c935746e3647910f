"""The verifier's streams: what a client hears of a wait, and clients that are slow to read."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest

from slipstream.core.errors import DeadlineExceeded, StreamUnread, Unavailable
from slipstream.wire import status
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import types_pb2, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.transport import Server, channel
from verifier_service import outbox as outbox_module
from verifier_service import servicer as module
from verifier_service.counters import EngineCounters
from verifier_service.generation import CommittedToken, Finish, Progress
from verifier_service.outbox import MESSAGE_TOKENS, Outbox
from verifier_service.servicer import Identity, VerifierServicer

# For what comes at once where the machine has time for it.
_SECONDS = 60.0
TOP = tuple((rank, -0.5) for rank in range(100_000, 100_020))


class Engine:
    """Does what a test says, of which a stream hears."""

    def __init__(self) -> None:
        self.alive = True
        self.counters = EngineCounters()
        self.cancelled = 0
        self.tell: Any = None

    def submit(self, request: Any) -> Any:
        self.tell = request.listener
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


class Call:
    """A call whose client takes messages out of `sent` as slowly as it likes.

    Only so many bytes are on their way, as over a real connection.
    """

    def __init__(self, window: int = 2**30) -> None:
        self.sent: asyncio.Queue[verifier_pb2.GenerateResponse] = asyncio.Queue()
        self.on_way, self.window = 0, window
        self._read = asyncio.Condition()

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def send_initial_metadata(self, metadata: tuple[()]) -> None:
        pass

    async def write(self, message: verifier_pb2.GenerateResponse) -> None:
        async with self._read:
            await self._read.wait_for(lambda: self.on_way < self.window)
            self.on_way += message.ByteSize() + 1
            self.sent.put_nowait(message)

    async def read(self) -> verifier_pb2.GenerateResponse:
        async with asyncio.timeout(_SECONDS):
            message = await self.sent.get()
        async with self._read:
            self.on_way -= message.ByteSize() + 1
            self._read.notify_all()
        return message


def serving(engine: Engine, **how: Any) -> VerifierServicer:
    identity = Identity("tiny", "native", "strict", True)
    mailbox = Mailbox(asyncio.get_running_loop())
    return VerifierServicer(cast("Any", engine), identity, None, mailbox, **how)


def asking() -> verifier_pb2.GenerateRequest:
    request = verifier_pb2.GenerateRequest(
        request_id="r", prompt_token_ids=[1], stop=types_pb2.StopConditions(max_tokens=9)
    )
    request.sampling.seed = 1
    return request


@contextlib.asynccontextmanager
async def stream(call: Call, **how: Any) -> AsyncIterator[tuple[Engine, asyncio.Task[None]]]:
    engine = Engine()
    servicer, request = serving(engine, **how), asking()
    # Without its decorator errors come as they are.
    handler = VerifierServicer.Generate.__wrapped__  # type: ignore[attr-defined]
    task = asyncio.create_task(handler(servicer, request, call))
    async with asyncio.timeout(_SECONDS):
        while engine.tell is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    try:
        yield engine, task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def tokens(count: int) -> tuple[CommittedToken, ...]:
    return tuple(CommittedToken(100_000, -0.5, TOP) for _ in range(count))


async def test_a_stream_that_waits_gives_signs_of_life(monkeypatch) -> None:
    """While a stream has nothing to say and the engine does steps, empty messages come; while it
    does none, none; and when it is dead the stream ends as Unavailable."""
    monkeypatch.setattr(module, "SIGN_SECONDS", 0.05)
    call = Call()
    async with stream(call) as (engine, task):
        engine.tell(Progress(tokens(1)))
        assert len((await call.read()).tokens) == 1
        for _ in range(3):
            while call.sent.empty():
                engine.counters.steps += 1
                await asyncio.sleep(0.02)
            assert (await call.read()).ByteSize() == 0
        # An engine that hangs is not said to live: what was due comes, and then nothing.
        async with asyncio.timeout(_SECONDS):
            while True:
                while not call.sent.empty():
                    await call.read()
                await asyncio.sleep(0.2)
                if call.sent.empty():
                    break
        engine.alive = False
        with pytest.raises(Unavailable):
            await task
        assert engine.cancelled == 1


async def test_a_slow_but_steady_reader_is_not_cut(monkeypatch) -> None:
    """Whoever reads a message now and then gets everything, in messages of bounded size, though
    the whole takes several times as long as --send-timeout."""
    call, loop, passed = Call(window=20_000), asyncio.get_running_loop(), [0.0]
    really = loop.time
    # By this clock reads are 20 s apart, however long they take.
    monkeypatch.setattr(loop, "time", lambda: really() + passed[0])
    async with stream(call, send_timeout=60.0) as (engine, task):
        for _ in range(20):
            engine.tell(Progress(tokens(40)))
        engine.tell(Progress(tokens(1), finish=Finish.LENGTH))
        read, messages = 0, 0
        while read < 801:
            passed[0] += 20.0
            await asyncio.sleep(0)
            message = await call.read()
            assert len(message.tokens) <= MESSAGE_TOKENS
            assert message.ByteSize() < 32 * 1024
            read, messages = read + len(message.tokens), messages + 1
            assert (message.finish_reason != 0) == (read == 801)
        await task
        assert 13 <= messages <= 20
        assert engine.counters.cut_clients == 0


async def test_a_client_that_reads_nothing_is_cut() -> None:
    """It ends with an error of its own kind, which is none of the request's; it is counted, and
    what it had is freed. The kind survives the way to the gateway."""
    call = Call(window=1000)
    async with stream(call, send_timeout=0.1) as (engine, task):
        for _ in range(3):
            engine.tell(Progress(tokens(64)))
            await asyncio.sleep(0.01)
        with pytest.raises(StreamUnread, match="read nothing for 0.1 s") as cut:
            await task
        assert (engine.counters.cut_clients, engine.cancelled) == (1, 1)
    assert cut.value.type == "server_error"
    over = status.from_grpc(cut.value.grpc_status, cut.value.message, cut.value.code)
    assert type(over) is StreamUnread
    assert type(status.from_grpc("DEADLINE_EXCEEDED", "late")) is DeadlineExceeded


async def test_an_outbox_says_everything_once() -> None:
    """Tokens come out in order, once each, at most so many at a time; the end only with the last,
    or alone after it."""
    outbox, ids = Outbox(), list(range(2 * MESSAGE_TOKENS + 5))
    for token in ids:
        outbox.put(Progress((CommittedToken(token),)))
    taken = [await outbox.take() for _ in range(3)]
    assert [t.id for each in taken for t in each.tokens] == ids
    outbox.put(Progress((CommittedToken(7),) * (MESSAGE_TOKENS + 1), finish=Finish.STOP))
    first, last = await outbox.take(), await outbox.take()
    assert (len(first.tokens), first.finish, first.error) == (MESSAGE_TOKENS, None, None)
    assert (len(last.tokens), last.finish) == (1, Finish.STOP)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await outbox.take()


@contextlib.asynccontextmanager
async def served(servicer: VerifierServicer) -> AsyncIterator[grpc.aio.Channel]:
    """Over a real connection, whose client lets 64 KB of a stream come ahead of what it reads."""
    server = Server("127.0.0.1:0", ["test"])
    verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server.grpc)
    try:
        async with channel(f"127.0.0.1:{await server.start()}", unread_bytes=65536) as link:
            yield link
    finally:
        async with asyncio.timeout(_SECONDS):
            await server.stop(0)


async def test_a_client_that_leaves_during_a_write_is_no_fault(caplog) -> None:
    """What gRPC cannot send to who has left is no failure of a handler; others are."""

    class Left(Call):
        async def abort(self, *_: Any) -> None:
            raise grpc.aio.AbortError

    for failure, complaints in ((grpc.aio.InternalError("batch"), 0), (ValueError("ours"), 1)):

        @status.unary
        async def handler(self: Any, request: Any, context: Any, failure=failure) -> None:
            raise failure

        with pytest.raises(grpc.aio.AbortError):
            await handler(None, None, Left())
        assert len([r for r in caplog.records if r.levelname == "ERROR"]) == complaints


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.parametrize("most", [MESSAGE_TOKENS, 2000], ids=["messages", "one-large-message"])
async def test_a_cut_stream_holds_nothing_while_its_client_stays(monkeypatch, most) -> None:
    """What a stream had still to say is gone when it is cut, and whenever its client reads on it
    hears why, even if the first message was more than it had let come."""
    made: list[weakref.ref[Outbox]] = []

    class Noted(Outbox):
        def __init__(self) -> None:
            super().__init__()
            made.append(weakref.ref(self))

    monkeypatch.setattr(module, "Outbox", Noted)
    monkeypatch.setattr(outbox_module, "MESSAGE_TOKENS", most)
    engine = Engine()
    async with served(serving(engine, send_timeout=0.3)) as link, asyncio.timeout(_SECONDS):
        call = verifier_pb2_grpc.VerifierServiceStub(link).Generate(asking())
        while engine.tell is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for _ in range(40):
            engine.tell(Progress(tokens(64)))
        engine.tell = None
        while not engine.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        while [each() for each in made] != [None]:
            await asyncio.sleep(0.05)
            gc.collect()
        with pytest.raises(grpc.aio.AioRpcError, match="read nothing") as raised:
            await read_on(call)
        assert isinstance(status.error_of(raised.value), StreamUnread)
