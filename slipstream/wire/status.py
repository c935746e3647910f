"""Errors across gRPC: the exception tree on one side, status codes and details on the other."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from slipstream.core.errors import InternalError, SlipstreamError, Unavailable, from_grpc
from slipstream.wire.tls import refusal

_CODE_KEY = "slipstream-error-code"
_PARAM_KEY = "slipstream-error-param"
_RETRY_KEY = "slipstream-retry-after-ms"
# What gRPC makes of a connection that carries nonsense. Our own errors have a code word.
_TRANSPORT_FAILURES = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
)
log = logging.getLogger(__name__)


def _trailers(error: SlipstreamError) -> list[tuple[str, str]]:
    trailers = [(_CODE_KEY, error.code)]
    if error.param is not None:
        trailers.append((_PARAM_KEY, error.param))
    if error.retry_after is not None:
        trailers.append((_RETRY_KEY, str(round(1000 * error.retry_after))))
    return trailers


async def abort(context: grpc.aio.ServicerContext, error: SlipstreamError) -> NoReturn:
    """Ends the call with the error's status; its code word and field ride in the trailers."""
    status = grpc.StatusCode[error.grpc_status]
    await context.abort(status, error.message, tuple(_trailers(error)))
    raise AssertionError("context.abort returned")


def rpc_error(error: SlipstreamError) -> grpc.aio.AioRpcError:
    """What a client's call raises where the peer ended it with `error`."""
    metadata = grpc.aio.Metadata
    status = grpc.StatusCode[error.grpc_status]
    return grpc.aio.AioRpcError(status, metadata(), metadata(*_trailers(error)), error.message)


def error_of(failure: grpc.aio.AioRpcError) -> SlipstreamError:
    """The error that the peer raised, or Unavailable, DeadlineExceeded... from the transport."""
    trailers = dict(failure.trailing_metadata() or ())
    code, word = failure.code().name, str(trailers.get(_CODE_KEY, ""))
    details = failure.details() or ""
    message = ("" if word else refusal(details)) or details or code
    if not word and failure.code() in _TRANSPORT_FAILURES:
        return Unavailable(f"the connection failed: {message}")
    error = from_grpc(code, message, word)
    param = trailers.get(_PARAM_KEY)
    error.param = None if param is None else str(param)
    retry = str(trailers.get(_RETRY_KEY, ""))
    error.retry_after = int(retry) / 1000 if retry.isdecimal() else None
    return error


def raised_by_peer(failure: grpc.aio.AioRpcError) -> bool:
    """Whether the peer ended the call on purpose, with an error of the tree. Else gRPC did, or the
    peer's handler failed in an unexpected way."""
    return _CODE_KEY in dict(failure.trailing_metadata() or ())


async def _fail(context: grpc.aio.ServicerContext, failure: Exception) -> NoReturn:
    if isinstance(failure, grpc.aio.InternalError):
        # It could not be sent: the client has left, and gRPC had not told of that yet.
        log.debug("a call ended while it was written to: %s", failure)
    elif not isinstance(failure, SlipstreamError):
        log.exception("unexpected failure in %s", "a gRPC handler", exc_info=failure)
    # The status waits behind what the client has not read, maybe for as long as it is connected.
    # Tracebacks would keep all that the handler held until then.
    failure.__traceback__ = failure.__context__ = failure.__cause__ = None
    if not isinstance(failure, SlipstreamError):
        failure = InternalError(f"internal error: {type(failure).__name__}")
    await abort(context, failure)


def unary(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Decorates a handler that is awaited: errors of the tree become statuses, others INTERNAL.

    That is a unary one, or one that writes its stream itself, with `context.write`.
    """

    @functools.wraps(handler)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await handler(self, request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as failure:
            await _fail(context, failure)

    return wrapped


def streaming(handler: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    """The same for a handler that streams its responses."""

    @functools.wraps(handler)
    async def wrapped(
        self: Any, request: Any, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        try:
            async for response in handler(self, request, context):
                yield response
        except grpc.aio.AbortError:
            raise
        except Exception as failure:
            await _fail(context, failure)

    return wrapped
