"""The gateway's link to one verifier: its channel, what it serves, whether it is there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.verifiers.broken import lost_error, of_failure
from gateway.verifiers.served import Limits, Lost, ServedModel, VerifierState, served_model
from gateway.watchdog import Watchdog
from slipstream.core.errors import DeadlineExceeded, Draining
from slipstream.discovery.slices import Endpoint
from slipstream.wire.proto import verifier_pb2, verifier_pb2_grpc
from slipstream.wire.telemetry.tracing import NO_HEADERS, Headers
from slipstream.wire.tls import refusal
from slipstream.wire.transport import channel

# Between two heartbeats, and the deadline of each.
_BEAT_SECONDS = 1.0
# Between those that come as a stream has broken; and no wait is looked after more often.
_LEAST_SECONDS = 0.05
_DEADLINE_GRACE_SECONDS = 0.25
# Of each stream, for a client that is slow to read: thousands of tokens.
_UNREAD_BYTES = 64 * 1024
# A gateway that was stopped itself wakes to one heartbeat that is too late, not to several.
_MISSES_UNTIL_LOST = 2
# A second of waiting in a verifier's queue counts as so many requests.
_REQUESTS_PER_SECOND = 8.0
_ROUND_TRIPS = 16
log = logging.getLogger(__name__)


class VerifierLink:
    """Owns the channel. `start` begins to look for the verifier, `close` ends it.

    Args:
        address: `host:port` of the verifier.
        limits: how long is waited for what.
        changed: called when its state or its model may be another one.

    Attributes:
        model: what it told last; None: nothing yet.
        listed: how it is listed; None: not any more. It gets new calls where it is, and not as one
            that drains.
    """

    def __init__(
        self, address: str, limits: Limits, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.address = address
        self.model: ServedModel | None = None
        self.listed: Endpoint | None = Endpoint(address)
        self._limits = limits
        self._lost_after = limits.lost_after
        self._changed = changed
        self._beat_seconds = min(_BEAT_SECONDS, limits.lost_after / 4)
        self._calls: set[Any] = set()
        # Of them, those that were ended as the verifier is lost.
        self._given_up: set[Any] = set()
        self._up = self._healthy = self._told_draining = False
        self._detail = "it has not answered yet"
        self._status = verifier_pb2.GetStatusResponse()
        self._calls_at_status = 0
        self._heard_at = self._status_at = self._opened_at = time.monotonic()
        self._misses = 0
        # Of heartbeats. The quickest is closest to what the way takes: others waited for a turn.
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._look = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._open()

    def _open(self) -> None:
        self._channel = channel(self.address, unread_bytes=_UNREAD_BYTES)
        self._stub = verifier_pb2_grpc.VerifierServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._opened_at = time.monotonic()

    def start(self) -> None:
        self._watcher = asyncio.create_task(self._watch(), name=f"verifier-watch {self.address}")

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        await self._channel.close()

    @property
    def calls(self) -> int:
        """Generations in progress."""
        return len(self._calls)

    @property
    def kv_address(self) -> str:
        """Of its KvService; empty where it lends nothing."""
        return "" if self.model is None else self.model.kv_address

    @property
    def state(self) -> str:
        """ "serving", "draining" or "lost"."""
        if not self._up or self.model is None:
            return "lost"
        wanted = self.listed is not None and not self.listed.draining
        return "serving" if wanted and self.able else "draining"

    @property
    def able(self) -> bool:
        """Whether it takes calls, wanted or not: a pod that goes is not told to stop at once."""
        if not self._up or self.model is None:
            return False
        return self._healthy and not self._told_draining and not self.model.draining

    @property
    def zone(self) -> str:
        """Where it runs, as it says itself, or else whoever lists it; empty: not known."""
        told = "" if self.model is None else self.model.zone
        return told or (self.listed.zone if self.listed else "")

    @property
    def load(self) -> float:
        """Requests that it has, as far as is known, with what a new one would wait.

        Our own calls are known; what it said of others' fades until it says something new.
        """
        faded = max(0.0, 1 - (time.monotonic() - self._status_at) / self._lost_after)
        told = self._status.requests_running + self._status.requests_waiting
        others = max(0, told - self._calls_at_status)
        waiting = _REQUESTS_PER_SECOND * self._status.expected_wait_seconds
        return self.calls + faded * (others + waiting)

    def describe(self, key: str) -> VerifierState:
        """Its state, for those who want a model of `key` (empty: any)."""
        state, detail = self.state, self._detail
        if state == "draining":
            detail = "it is not serving"
            if self.listed is None:
                detail = "it is not listed any more"
            elif self.listed.draining:
                detail = "its pod is terminating"
        if self.model is not None and state != "lost" and key and self.model.key != key:
            state, detail = "other model", f"it serves {self.model.model_id} ({self.model.key})"
        up = state != "lost"
        return VerifierState(
            self.address,
            state,
            "" if state == "serving" else detail,
            self.zone,
            self._status.drafter_connected if up else None,
            self._status.drafter_detail if up else "unknown",
            self.model.exactness if self.model else "",
            min(self._round_trips, default=None),
        )

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await self.beat()
            if self._silent():
                await self._give_up()
            await asyncio.sleep(_LEAST_SECONDS)
            # Whoever waits for one that comes back waits for this.
            period = self._beat_seconds if self._up else self._beat_seconds / 2
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + period - time.monotonic())):
                    await self._look.wait()
            self._look.clear()

    async def beat(self, seconds: float | None = None) -> None:
        """Asks it once what it is and how it is, for at most so long as is given, or a second."""
        seconds, calls, began = seconds or self._beat_seconds, self.calls, time.monotonic()
        try:
            model, status, health = await asyncio.gather(
                self._stub.GetModel(verifier_pb2.GetModelRequest(), timeout=seconds),
                self._stub.GetStatus(verifier_pb2.GetStatusRequest(), timeout=seconds),
                self._health.Check(health_pb2.HealthCheckRequest(), timeout=seconds),
            )
        except grpc.aio.AioRpcError as failure:
            self._missed(failure.details() or "", failure.code())
            return
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The channel was closed for a new one.
            self._missed("its connection leads nowhere", grpc.StatusCode.CANCELLED)
            return
        if model is None or status is None or health is None:
            self._missed("its answer could not be read", grpc.StatusCode.DATA_LOSS)
            return
        self._answered(served_model(model), health.status == health_pb2.HealthCheckResponse.SERVING)
        self._round_trips.append(time.monotonic() - began)
        self._status, self._calls_at_status = status, calls
        self._status_at = time.monotonic()

    def _answered(self, model: ServedModel, healthy: bool) -> None:
        before = (self.state, self.model)
        if not self._up or self.model is None or self.model.incarnation != model.incarnation:
            # Another process in its place.
            self._told_draining = False
        self.model, self._healthy, self._up = model, healthy, True
        self._misses, self._heard_at = 0, time.monotonic()
        if (self.state, self.model) == before:
            return
        log.info("verifier at %s is %s: %s", self.address, self.state, model.model_id)
        self._changed()

    def _missed(self, details: str, code: grpc.StatusCode) -> None:
        self._misses += 1
        if code is grpc.StatusCode.UNAVAILABLE or self._silent():
            # Streams that it still has are left alone while something comes from them: one that
            # stops takes no new calls, and goes on with those it has.
            self._down(details or code.name)

    def _silent(self) -> bool:
        silence = time.monotonic() - self._heard_at
        return self._misses >= _MISSES_UNTIL_LOST and silence >= self._lost_after

    def _down(self, reason: str) -> None:
        refused = refusal(reason)
        reason = refused or reason
        if refused and reason != self._detail and not self._up:
            log.warning("verifier at %s cannot be reached: %s", self.address, reason)
        self._detail = reason
        if self._up:
            log.warning("verifier at %s is lost: %s", self.address, reason)
            self._up = False
            self._changed()

    async def _give_up(self) -> None:
        """Ends all calls, and the connection, which may lead nowhere."""
        self._given_up |= self._calls
        for call in self._calls:
            call.cancel()
        if time.monotonic() - self._opened_at >= self._lost_after:
            old = self._channel
            self._open()
            await old.close()

    def drains(self) -> None:
        """It said so in a stream, sooner than by its heartbeat."""
        if not self._told_draining:
            self._told_draining = True
            self._changed()

    async def generate(
        self,
        request: verifier_pb2.GenerateRequest,
        trace: Headers = NO_HEADERS,
        *,
        first_by: float,
    ) -> AsyncGenerator[verifier_pb2.GenerateResponse, None]:
        """The messages of one generation. Closing the iterator cancels the call at once.

        Those without a token or an end only say that the verifier is there, or that it drains; from
        then on they are passed on. They count as such between two tokens; before the first one,
        where a request may just wait, as nothing.

        Args:
            trace: names the span that the verifier's belongs to.
            first_by: when the first token must be there, on `time.monotonic()`'s clock.

        Raises:
            Lost: it cannot go on here, through no fault of the request.
            DeadlineExceeded: no first token within the time allowed, or the request's is over.
            SlipstreamError: what the verifier raised.
        """
        left = request.deadline_seconds if request.HasField("deadline_seconds") else None
        # The verifier keeps the deadline and says so; the call's own is there in case it does not.
        call = self._stub.Generate(
            request,
            timeout=None if left is None else left + _DEADLINE_GRACE_SECONDS,
            metadata=tuple(trace.items()),
        )
        # What goes on where another one ended has been let in: silence is a fault from the start.
        limits, begun = self._limits, False
        idle = limits.idle if request.committed_token_ids else math.inf
        shortest = min(first_by - time.monotonic(), limits.idle)
        watchdog = Watchdog(call.cancel, max(shortest, _LEAST_SECONDS))
        self._calls.add(call)
        try:
            while True:
                watchdog.wait(idle if begun else min(idle, first_by - time.monotonic()))
                message = await call.read()
                watchdog.rest()
                if message is grpc.aio.EOF:
                    raise self.lost("connection", "its stream ended without a last word")
                if message is None:
                    raise self.lost("corrupted", "its message could not be read")
                self._heard_at = time.monotonic()
                if message.tokens or message.finish_reason:
                    yield message
                    begun, idle = True, limits.idle
                elif message.HasField("draining_seconds"):
                    self.drains()
                    yield message
                elif self._told_draining:
                    # Another verifier may be there by now.
                    yield message
        except grpc.aio.AioRpcError as failure:
            raise self._translated(failure) from failure
        except asyncio.CancelledError as failure:
            if call in self._given_up:
                why = f"nothing was heard of it for {self._lost_after:g} s"
                raise self.lost("heartbeat", why) from failure
            if not watchdog.barked:
                raise
            if not begun and time.monotonic() >= first_by:
                raise self._silence(limits.first_token) from failure
            raise Lost("silent", self._silence(idle)) from failure
        finally:
            self._calls.discard(call)
            self._given_up.discard(call)
            watchdog.close()
            call.cancel()

    def lost(self, reason: str, why: str) -> Lost:
        return Lost(reason, lost_error(f"the verifier at {self.address}: {why}"))

    def _silence(self, seconds: float) -> DeadlineExceeded:
        told = f"the verifier sent nothing for {seconds:g} s"
        return DeadlineExceeded(told, inner=f"the verifier at {self.address}")

    def _translated(self, failure: grpc.aio.AioRpcError) -> Exception:
        error = of_failure(failure, self.address)
        if isinstance(error, Draining):
            self.drains()
        if isinstance(error, Lost) and error.reason == "connection":
            log.info("verifier at %s: %s: %s", self.address, failure.code().name, failure.details())
            if not error.reached:
                self._down(failure.details() or "connection lost")
            # One stream that breaks may be nothing but that: a heartbeat tells, at once.
            self._look.set()
        return error
