"""Errors as they are kept, for those who ask later how a generation ended."""

from __future__ import annotations

from slipstream.core.errors import (
    DeadlineExceeded,
    Overloaded,
    SlipstreamError,
    Unavailable,
    from_grpc,
)
from slipstream.wire.proto import store_pb2


def to_message(failure: SlipstreamError) -> store_pb2.GenerationFailure:
    return store_pb2.GenerationFailure(
        code=failure.code, message=failure.message, param=failure.param or ""
    )


def to_error(message: store_pb2.GenerationFailure) -> SlipstreamError:
    error = from_grpc("INTERNAL", message.message, message.code)
    error.param = message.param or None
    return error


def may_pass(failure: SlipstreamError) -> bool:
    """Whether another try, later or elsewhere, may well succeed."""
    if isinstance(failure, DeadlineExceeded):
        # Its own time does not come back; a verifier that was silent may be replaced.
        return failure.param is None
    return isinstance(failure, Overloaded | Unavailable)
