"""What the end of a verifier's stream means: the request's fault, load, or a verifier lost."""

from __future__ import annotations

import grpc

from gateway.verifiers.served import Lost
from slipstream.core.errors import (
    Corrupted,
    DeadlineExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    Overloaded,
    SlipstreamError,
    StreamUnread,
    Unavailable,
)
from slipstream.wire.status import error_of, raised_by_peer

# What verifiers say of requests, clients and load is written for clients.
_FOR_CLIENTS = (InvalidRequest, Overloaded, StreamUnread)


def of_failure(failure: grpc.aio.AioRpcError, address: str) -> Exception:
    """The error to raise: Lost where the request can go on elsewhere, else one of the tree.

    Whatever else a verifier, or gRPC, said may name inner addresses, so clients are told our own
    words; theirs are `inner`.
    """
    error, raised = error_of(failure), raised_by_peer(failure)
    if raised and isinstance(error, _FOR_CLIENTS):
        return error
    inner = f"the verifier at {address} said: {error.message}"
    if isinstance(error, DeadlineExceeded):
        # Only the request's own deadline is told to the verifier.
        return DeadlineExceeded("the request's time is over", param="timeout")
    told = lost_error(inner)
    if not raised:
        # A status without our code word is the transport's, whatever it is: a connection that broke
        # or bytes that changed on the way show as UNAVAILABLE, INTERNAL, CANCELLED and others.
        unreached = "failed to connect" in (failure.details() or "").lower()
        return Lost("connection", told, reached=not unreached)
    if isinstance(error, Draining):
        return _retold(error, "the verifier is about to stop; try again soon", inner)
    if isinstance(error, Corrupted):
        return Lost("corrupted", told)
    if isinstance(error, InternalError):
        return Lost("error", _retold(error, "the verifier failed", inner), passing=False)
    if isinstance(error, Unavailable):
        return Lost("error", told)
    return _retold(error, "the verifier cannot serve this request", inner)


def lost_error(inner: str) -> Unavailable:
    """What the client is told of a lost verifier, and `inner` what operators are."""
    return Unavailable("the verifier was lost; try again soon", inner=inner)


def _retold(error: SlipstreamError, message: str, inner: str) -> SlipstreamError:
    error.message, error.inner = message, inner
    return error
