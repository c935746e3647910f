"""One stream from a shard to the next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Self

import grpc

from slipstream.core.errors import DeadlineExceeded, SlipstreamError, Unavailable
from slipstream.wire.proto import shard_pb2, shard_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

_HELLO_TIMEOUT_SECONDS = 10.0
_WATCH_SECONDS = 0.25


class Hop:
    """A stream to the next shard, from hello to its end. An async context manager.

    Lives on the event loop; `send` is for any thread.

    Args:
        address: host:port of the next shard.
        patience: seconds that a pass may take until the shards behind count as dead.
    """

    def __init__(self, address: str, patience: float) -> None:
        self._address, self._patience = address, patience
        self._channel = channel(address)
        self._stream = shard_pb2_grpc.ShardServiceStub(self._channel).Run()
        self._outbox: asyncio.Queue[shard_pb2.RunRequest] = asyncio.Queue()
        self._sent: deque[float] = deque()
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.cancel()
        await self._channel.close()

    async def greet(self, hello: shard_pb2.ShardHello) -> shard_pb2.ShardHello:
        """Says who we are; the answer tells that all shards behind are there.

        Raises:
            SlipstreamError: what the next shard has against it, or that there is none.
        """
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
                await self._stream.write(shard_pb2.RunRequest(hello=hello))
                first = await self._stream.read()
        except TimeoutError:
            raise DeadlineExceeded(f"shard {self._address} did not answer in time") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as failure:
            raise await self._why() from failure
        if first is grpc.aio.EOF:
            raise await self._why()
        answer: shard_pb2.ShardHello = first.hello
        return answer

    def send(self, request: shard_pb2.RunRequest) -> None:
        """Sends requests in order."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, request)

    async def run(self, deliver: Callable[[shard_pb2.RunResponse], None]) -> None:
        """Sends and delivers until the stream ends. Raises SlipstreamError, never returns."""
        coroutines = (self._write(), self._read(deliver), self._watch())
        tasks = [asyncio.create_task(one) for one in coroutines]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as failure:
            raise await self._why() from failure
        finally:
            for task in tasks:
                task.cancel()

    async def _write(self) -> None:
        while True:
            request = await self._outbox.get()
            if request.HasField("forward"):
                self._sent.append(time.monotonic())
            await self._stream.write(request)

    async def _read(self, deliver: Callable[[shard_pb2.RunResponse], None]) -> None:
        while (response := await self._stream.read()) is not grpc.aio.EOF:
            if response.HasField("result") and self._sent:
                self._sent.popleft()
            deliver(response)
        raise await self._why()

    async def _watch(self) -> None:
        """A process that hangs keeps its connections open: only a deadline tells."""
        while True:
            await asyncio.sleep(min(_WATCH_SECONDS, self._patience / 4))
            if self._sent and time.monotonic() - self._sent[0] > self._patience:
                raise DeadlineExceeded(
                    f"shard {self._address} did not finish a pass in {self._patience:g} s"
                )

    async def _why(self) -> SlipstreamError:
        """What ended the stream."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
                code, details = await self._stream.code(), await self._stream.details()
                trailers = await self._stream.trailing_metadata()
        except (TimeoutError, grpc.aio.AioRpcError):
            return Unavailable(f"shard {self._address} ended the stream")
        if code is grpc.StatusCode.OK:
            return Unavailable(f"shard {self._address} ended the stream")
        metadata = grpc.aio.Metadata
        return error_of(grpc.aio.AioRpcError(code, metadata(), trailers or metadata(), details))
