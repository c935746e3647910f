"""A shard's gRPC face: one stream from the shard before it, one to the shard behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc

from drafter_service.shard_codec import check_hello, hello, own_place
from drafter_service.shard_counters import ShardCounters
from drafter_service.shard_engine import ShardEngine, Stream
from drafter_service.shard_hop import Hop
from drafter_service.shard_status import GetShard
from slipstream.core.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    SlipstreamError,
    Unavailable,
)
from slipstream.wire.proto import shard_pb2
from slipstream.wire.status import streaming

log = logging.getLogger(__name__)
_HELLO_TIMEOUT_SECONDS = 10.0
_Outbox = asyncio.Queue[shard_pb2.RunResponse | SlipstreamError]


class ShardServicer(GetShard):
    """Serves one stream at a time, and holds one to the next shard as long as that one lasts.

    So every shard of a row learns of the loss of any other by the end of a stream, and starts
    anew with the next one.

    Args:
        next_address: host:port of the next shard; empty on the last one.
        patience: seconds that a pass may take behind this shard.
    """

    def __init__(self, engine: ShardEngine, next_address: str, patience: float) -> None:
        super().__init__(engine.runner, next_address)
        self._engine, self._next, self._patience = engine, next_address, patience
        self._taken = False
        self._loop = asyncio.get_running_loop()

    @property
    def counters(self) -> ShardCounters:
        return self._engine.counters

    @property
    def num_open(self) -> int:
        return self._engine.num_open

    @streaming
    async def Run(
        self,
        request_iterator: AsyncIterator[shard_pb2.RunRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[shard_pb2.RunResponse]:
        await self._greet(request_iterator)
        if self._taken:
            raise Unavailable("this shard is part of a row already")
        self._taken = True
        outbox: _Outbox = asyncio.Queue()
        tasks: list[asyncio.Task[None]] = []
        stream: Stream | None = None
        try:
            async with AsyncExitStack() as stack:
                hop, places = await self._connect(stack)
                stream = self._stream(outbox, hop)
                self._engine.begin(stream)
                own = self._engine.runner
                answer = hello(own, own.loaded.shard.index, [own_place(own), *places])
                yield shard_pb2.RunResponse(hello=answer)
                log.info("part of a row: %s connected", context.peer())
                tasks.append(asyncio.create_task(self._read(stream, request_iterator, outbox)))
                if hop is not None:
                    tasks.append(asyncio.create_task(_relay(hop, outbox)))
                while not isinstance(message := await outbox.get(), SlipstreamError):
                    yield message
                raise message
        finally:
            for task in tasks:
                task.cancel()
            if stream is not None:
                self._engine.end(stream)
            self._taken = False
            log.info("no longer part of a row")

    async def _greet(self, requests: AsyncIterator[shard_pb2.RunRequest]) -> None:
        """Raises InvalidRequest, DeadlineExceeded, ModelMismatch or ConfigurationError."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
                first = await anext(aiter(requests), None)
        except TimeoutError:
            raise DeadlineExceeded("a shard's stream began without a hello") from None
        if first is None or not first.HasField("hello"):
            raise InvalidRequest("the first request of a shard's stream must be a hello")
        runner = self._engine.runner
        try:
            check_hello(first.hello, hello(runner, runner.loaded.shard.index))
        except SlipstreamError as failure:
            log.warning("the shard before this one was refused: %s", failure.message)
            raise

    async def _connect(
        self, stack: AsyncExitStack
    ) -> tuple[Hop | None, list[shard_pb2.ShardPlace]]:
        """The hop to the next shard and where the shards behind compute. Raises SlipstreamError."""
        if not self._next:
            return None, []
        hop = await stack.enter_async_context(Hop(self._next, self._patience))
        runner = self._engine.runner
        answer = await hop.greet(hello(runner, runner.loaded.shard.index + 1))
        return hop, list(answer.places)

    def _stream(self, outbox: _Outbox, hop: Hop | None) -> Stream:
        def put(message: shard_pb2.RunResponse | SlipstreamError) -> None:
            self._loop.call_soon_threadsafe(outbox.put_nowait, message)

        return Stream(None if hop is None else hop.send, put, put)

    async def _read(
        self, stream: Stream, requests: AsyncIterator[shard_pb2.RunRequest], outbox: _Outbox
    ) -> None:
        try:
            async for request in requests:
                self._engine.obey(stream, request)
        except SlipstreamError as failure:
            outbox.put_nowait(failure)
        finally:
            outbox.put_nowait(Cancelled("the shard before this one left"))


async def _relay(hop: Hop, outbox: _Outbox) -> None:
    """What comes back from behind goes on to the shard before."""
    try:
        await hop.run(outbox.put_nowait)
    except SlipstreamError as failure:
        outbox.put_nowait(Unavailable(failure.message))
