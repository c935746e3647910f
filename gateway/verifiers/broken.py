"""What the end of a verifier's stream means: the request's fault, load, or a verifier lost."""

from __future__ import annotations

import grpc

from gateway.verifiers.served import Lost
from slipstream.core.errors import (
    Corrupted,
    DeadlineExceeded,
    Draining,
    InternalError,
    StreamUnread,
    Unavailable,
)
from slipstream.wire.status import error_of, raised_by_peer


def of_failure(failure: grpc.aio.AioRpcError, address: str) -> Exception:
    """The error to raise: Lost where the request can go on elsewhere, else one of the tree."""
    error = error_of(failure)
    if isinstance(error, StreamUnread):
        return error
    if isinstance(error, DeadlineExceeded):
        # Only the request's own deadline is told to the verifier.
        return DeadlineExceeded("the request's time is over", param="timeout")
    told = Unavailable(f"the verifier at {address} was lost; try again soon")
    if not raised_by_peer(failure):
        # A status without our code word is the transport's, whatever it is: a connection that broke
        # or bytes that changed on the way show as UNAVAILABLE, INTERNAL, CANCELLED and others.
        unreached = "failed to connect" in (failure.details() or "").lower()
        return Lost("connection", told, reached=not unreached)
    if isinstance(error, Draining):
        return error
    if isinstance(error, Corrupted):
        return Lost("corrupted", told)
    if isinstance(error, InternalError):
        return Lost("error", error, passing=False)
    if isinstance(error, Unavailable):
        return Lost("error", told)
    return error
