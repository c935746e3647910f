"""The gateway's link to its verifier: one channel, what it serves, whether it answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.watchdog import Watchdog
from slipstream.core.errors import (
    DeadlineExceeded,
    InternalError,
    SlipstreamError,
    StreamUnread,
    Unavailable,
)
from slipstream.wire.proto import verifier_pb2, verifier_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.telemetry.tracing import NO_HEADERS, Headers
from slipstream.wire.transport import channel

_CALL_SECONDS = 2.0
_RETRY_SECONDS = 0.5
_REFRESH_SECONDS = 2.0
_DEADLINE_GRACE_SECONDS = 0.25
# Of each stream, for a client that is slow to read: thousands of tokens.
_UNREAD_BYTES = 64 * 1024
# A busy verifier may answer late; only so many late answers in a row count as none.
_MISSES_UNTIL_LOST = 3
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the verifier serves, from GetModel.

    Attributes:
        key: verifiers of one key give the same tokens.
    """

    model_id: str
    fingerprint: str
    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    key: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What `/ready` says. `missing` is empty when requests can be served."""

    missing: tuple[str, ...]
    drafter_connected: bool | None
    drafter_detail: str


class VerifierLink:
    """Owns the channel. `start` begins to look for the verifier, `close` ends it.

    Args:
        address: `host:port` of the verifier.
        first_token_timeout: seconds that a request may wait for its first token.
        idle_timeout: seconds between two messages of one stream, signs of life included.
    """

    def __init__(self, address: str, first_token_timeout: float, idle_timeout: float) -> None:
        self.address = address
        self._first_token_timeout = first_token_timeout
        self._idle_timeout = idle_timeout
        self._channel = channel(address, unread_bytes=_UNREAD_BYTES)
        self._stub = verifier_pb2_grpc.VerifierServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._model: ServedModel | None = None
        self._calls = 0
        self._misses = 0
        self._watcher: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name="verifier-watch")

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._channel.close()

    @property
    def calls(self) -> int:
        """Generations in progress."""
        return self._calls

    @property
    def known_model(self) -> ServedModel | None:
        return self._model

    def model(self) -> ServedModel:
        """What is served now.

        Raises:
            Unavailable: the verifier does not answer.
        """
        if self._model is None:
            raise Unavailable(f"the verifier at {self.address} does not answer; try again soon")
        return self._model

    async def _watch(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(_RETRY_SECONDS if self._model is None else _REFRESH_SECONDS)

    async def _refresh(self) -> None:
        try:
            reply = await self._stub.GetModel(verifier_pb2.GetModelRequest(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            self._misses += 1
            gone = failure.code() is grpc.StatusCode.UNAVAILABLE
            if gone or self._misses >= _MISSES_UNTIL_LOST:
                self._lost(failure.details() or failure.code().name)
            return
        self._misses = 0
        model = ServedModel(
            reply.model_id,
            reply.fingerprint,
            reply.context_length,
            reply.vocab_size,
            frozenset(reply.eos_token_ids),
            f"{reply.fingerprint}/{reply.dtype}/{reply.precision}/{reply.exactness}",
        )
        if model != self._model:
            log.info("verifier at %s serves %s", self.address, model.model_id)
        self._model = model

    def _lost(self, reason: str) -> None:
        if self._model is not None:
            log.warning("verifier at %s is lost: %s", self.address, reason)
        self._model = None

    async def readiness(self) -> Readiness:
        """Asks the verifier now, for at most two seconds."""
        try:
            health, status = await asyncio.gather(
                self._health.Check(health_pb2.HealthCheckRequest(), timeout=_CALL_SECONDS),
                self._stub.GetStatus(verifier_pb2.GetStatusRequest(), timeout=_CALL_SECONDS),
            )
        except grpc.aio.AioRpcError as failure:
            reason = failure.details() or failure.code().name
            return Readiness((f"verifier at {self.address}: {reason}",), None, "unknown")
        missing = []
        if health.status != health_pb2.HealthCheckResponse.SERVING:
            missing.append(f"verifier at {self.address} is not serving")
        if self._model is None:
            missing.append(f"verifier at {self.address} has not told its model yet")
        return Readiness(tuple(missing), status.drafter_connected, status.drafter_detail)

    async def generate(
        self, request: verifier_pb2.GenerateRequest, trace: Headers = NO_HEADERS
    ) -> AsyncGenerator[verifier_pb2.GenerateResponse, None]:
        """The messages of one generation. Closing the iterator cancels the call at once.

        Those without a token or an end only say that the verifier is there: they count as such
        between two tokens, and before the first one, where a request may just wait, as nothing.

        Args:
            trace: names the span that the verifier's belongs to.

        Raises:
            DeadlineExceeded: no message within the time allowed, or the request's is over.
            SlipstreamError: what the verifier raised; Unavailable when it is lost.
        """
        left = request.deadline_seconds if request.HasField("deadline_seconds") else None
        # The verifier keeps the deadline and says so; the call's own is there in case it does not.
        call = self._stub.Generate(
            request,
            timeout=None if left is None else left + _DEADLINE_GRACE_SECONDS,
            metadata=tuple(trace.items()),
        )
        timeout = self._first_token_timeout
        watchdog = Watchdog(call.cancel, min(timeout, self._idle_timeout))
        first_by: float | None = time.monotonic() + timeout
        self._calls += 1
        try:
            while True:
                watchdog.wait(timeout if first_by is None else first_by - time.monotonic())
                message = await call.read()
                watchdog.rest()
                if message is grpc.aio.EOF:
                    break
                if message.tokens or message.finish_reason:
                    yield message
                    first_by, timeout = None, self._idle_timeout
            if await call.code() is not grpc.StatusCode.OK:
                raise InternalError("the verifier ended the stream without a status")
        except grpc.aio.AioRpcError as failure:
            raise self._translated(failure) from failure
        except asyncio.CancelledError as failure:
            if not watchdog.barked:
                raise
            raise DeadlineExceeded(f"the verifier sent nothing for {timeout:g} s") from failure
        finally:
            self._calls -= 1
            watchdog.close()
            call.cancel()

    def _translated(self, failure: grpc.aio.AioRpcError) -> SlipstreamError:
        if failure.code() is grpc.StatusCode.UNAVAILABLE:
            self._lost(failure.details() or "connection lost")
            return Unavailable(f"the verifier at {self.address} was lost; try again soon")
        error = error_of(failure)
        if isinstance(error, StreamUnread):
            return error
        if isinstance(error, DeadlineExceeded):
            # Only the request's own deadline is told to the verifier.
            return DeadlineExceeded("the request's time is over", param="timeout")
        return error
