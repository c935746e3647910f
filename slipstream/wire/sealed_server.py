"""A server's side of seals: each response gets one, and a request that has one must match it."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from slipstream.core.errors import Corrupted, InvalidRequest, SlipstreamError
from slipstream.wire.seal import METADATA_KEY, Damaged, Seal
from slipstream.wire.status import abort

log = logging.getLogger(__name__)


class SealInterceptor(grpc.aio.ServerInterceptor):
    """Wraps handlers; has to be the outermost of a server's interceptors.

    Clients that do not know of seals are served: only who says in a call's metadata that it seals
    has to. A request that is not what was sent ends its call with Corrupted: instead of the handler
    where there is one request; where they are streamed, at the handler's next look for one.
    """

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        named = dict(handler_call_details.invocation_metadata or ()).get(METADATA_KEY, "")
        return _sealed(handler, handler_call_details.method, str(named))


def _sealed(handler: Any, path: str, name: str) -> Any:
    """A handler of the same kind, for one call."""
    requests = Seal(name, path, "request", demanded=bool(name))
    responses = Seal(name, path, "response")
    parse = handler.request_deserializer or bytes
    serialize = handler.response_serializer or bytes

    def read(sealed: bytes) -> Any:
        try:
            message = requests.open(sealed)
        except Damaged as damage:
            failure = Corrupted(f"a request to {path} is not what was sent: {damage}")
            log.warning("%s; the call ends", failure.message)
            raise failure from None
        try:
            return parse(message)
        except DecodeError:
            raise InvalidRequest(f"a request to {path} cannot be read") from None

    def read_or_failure(sealed: bytes) -> Any:
        # gRPC would log what is raised here with its traceback, and answer UNKNOWN.
        try:
            return read(sealed)
        except SlipstreamError as failure:
            return failure

    def write(response: Any) -> bytes:
        return responses.close(serialize(response))

    if handler.request_streaming:
        if handler.response_streaming:
            behaviour = _streaming(handler.stream_stream, responses)
            return grpc.stream_stream_rpc_method_handler(behaviour, read, write)
        return grpc.stream_unary_rpc_method_handler(handler.stream_unary, read, write)
    if handler.response_streaming:
        behaviour = _streaming(handler.unary_stream, responses)
        return grpc.unary_stream_rpc_method_handler(behaviour, read_or_failure, write)
    behaviour = _unary(handler.unary_unary)
    return grpc.unary_unary_rpc_method_handler(behaviour, read_or_failure, write)


async def _check(request: Any, context: grpc.aio.ServicerContext) -> None:
    """Ends the call where the request is a failure to read it."""
    if isinstance(request, SlipstreamError):
        await abort(context, request)


def _unary(behaviour: Any) -> Any:
    async def wrapped(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await _check(request, context)
        return await behaviour(request, context)

    return wrapped


def _streaming(behaviour: Any, responses: Seal) -> Any:
    """For a handler that generates its responses, or one that writes them."""

    async def generate(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        await _check(request, context)
        async with contextlib.aclosing(behaviour(request, context)) as messages:
            async for message in messages:
                yield message
        context.set_trailing_metadata(responses.end)

    async def write(request: Any, context: grpc.aio.ServicerContext) -> None:
        await _check(request, context)
        await behaviour(request, context)
        context.set_trailing_metadata(responses.end)

    return generate if inspect.isasyncgenfunction(behaviour) else write
