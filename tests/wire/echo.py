"""A service that answers with what it gets, in all four kinds of calls, sealed or plain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import BytesValue

from slipstream.wire.status import streaming, unary
from slipstream.wire.transport import Server

SERVICE = "tests.Echo"


@dataclass
class Echo:
    """Sends requests back, one by one; `UnaryStream` twice, `StreamUnary` all in one.

    Attributes:
        heard: the requests that the handlers saw.
    """

    heard: list[bytes] = field(default_factory=list)

    def _hear(self, request: BytesValue) -> BytesValue:
        self.heard.append(request.value)
        return BytesValue(value=request.value)

    @unary
    async def UnaryUnary(self, request, context):  # noqa: N802
        return self._hear(request)

    @streaming
    async def UnaryStream(self, request, context):  # noqa: N802
        yield self._hear(request)
        yield request

    @unary
    async def UnaryStreamWritten(self, request, context):  # noqa: N802
        """The same by a handler that writes."""
        for _ in range(2):
            await context.write(self._hear(request))

    @unary
    async def StreamUnary(self, requests, context):  # noqa: N802
        return BytesValue(value=b"".join([self._hear(each).value async for each in requests]))

    @streaming
    async def StreamStream(self, requests, context):  # noqa: N802
        async for request in requests:
            yield self._hear(request)

    def handlers(self) -> grpc.GenericRpcHandler:
        formats = BytesValue.FromString, BytesValue.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.UnaryUnary, *formats),
                "UnaryStream": grpc.unary_stream_rpc_method_handler(self.UnaryStream, *formats),
                "UnaryStreamWritten": grpc.unary_stream_rpc_method_handler(
                    self.UnaryStreamWritten, *formats
                ),
                "StreamUnary": grpc.stream_unary_rpc_method_handler(self.StreamUnary, *formats),
                "StreamStream": grpc.stream_stream_rpc_method_handler(self.StreamStream, *formats),
            },
        )


class Stub:
    """Over any channel, plain or sealed. Values in, values out."""

    def __init__(self, link: grpc.aio.Channel) -> None:
        formats = BytesValue.SerializeToString, BytesValue.FromString
        self.unary_unary = link.unary_unary(f"/{SERVICE}/UnaryUnary", *formats)
        self.unary_stream = link.unary_stream(f"/{SERVICE}/UnaryStream", *formats)
        self.unary_written = link.unary_stream(f"/{SERVICE}/UnaryStreamWritten", *formats)
        self.stream_unary = link.stream_unary(f"/{SERVICE}/StreamUnary", *formats)
        self.stream_stream = link.stream_stream(f"/{SERVICE}/StreamStream", *formats)

    async def one(self, value: bytes, **options: Any) -> bytes:
        return (await self.unary_unary(BytesValue(value=value), **options)).value


@asynccontextmanager
async def serve_sealed(echo: Echo) -> AsyncIterator[str]:
    """One of ours. Yields its address."""
    server = Server("127.0.0.1:0", [SERVICE])
    server.grpc.add_generic_rpc_handlers((echo.handlers(),))
    port = await server.start()
    await server.set_serving(True)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def serve_plain(echo: Echo) -> AsyncIterator[str]:
    """One that knows nothing of seals. Yields its address."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 2**20)])
    server.add_generic_rpc_handlers((echo.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
