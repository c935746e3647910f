"""The drafter's gRPC face: one stream for each verifier."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import AsyncIterator, Iterable

import grpc

from drafter_service.adaptive import Adaptive, AdaptiveCounters
from drafter_service.engine import DrafterEngine
from drafter_service.kv_context import KvContext
from slipstream.core.draft import Proposal, Refusal
from slipstream.core.errors import DeadlineExceeded, InvalidRequest, ModelMismatch, Unavailable
from slipstream.discovery.zone import Zone
from slipstream.wire.draft_codec import command_from_proto, response_to_proto
from slipstream.wire.host import host_id
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.status import streaming, unary
from slipstream.wire.telemetry.tracing import NO_SPAN, NO_TRACING, Span, Tracing

log = logging.getLogger(__name__)
_HELLO_TIMEOUT_SECONDS = 10.0


class DrafterServicer(drafter_pb2_grpc.DrafterServiceServicer):
    """Routes commands to the engine and proposals back to the verifier they are for.

    Args:
        context: is told where a verifier's keys and values are.
        cores: that this process may compute on; none where it computes elsewhere.
        tracing: takes the drafter's part of rounds that a verifier traces.
        zone: where this process runs.
    """

    def __init__(
        self,
        context: KvContext,
        cores: Iterable[int] = (),
        tracing: Tracing = NO_TRACING,
        zone: Zone | None = None,
    ) -> None:
        self._engine: DrafterEngine
        self._context = context
        self._adaptive = AdaptiveCounters()
        self._cores = sorted(cores)
        self._numbers = itertools.count(1)
        self._outboxes: dict[int, asyncio.Queue[drafter_pb2.DraftResponse | None]] = {}
        self._tracing = tracing
        # The traced round of each connection that no drafts have answered yet.
        self._rounds: dict[int, Span] = {}
        self._refusal = ""
        self._zone = zone or Zone()
        self._incarnation = uuid.uuid4().hex
        self._loop = asyncio.get_running_loop()

    def attach(self, engine: DrafterEngine, adaptive: Adaptive | None = None) -> None:
        self._engine = engine
        self._adaptive = adaptive.counters if adaptive else AdaptiveCounters()

    def open_to_verifiers(self, cores: Iterable[int]) -> None:
        """Takes streams, says that it computes on `cores`."""
        self._refusal, self._cores = "", sorted(cores)

    def close_to_verifiers(self, reason: str) -> None:
        """Ends all streams and takes no new ones."""
        self._refusal = reason
        if reason:
            for outbox in self._outboxes.values():
                outbox.put_nowait(None)

    def send(self, connection: int, proposals: list[Proposal], refusals: list[Refusal]) -> None:
        """Called on the engine's thread."""
        counters = self._engine.counters
        message = response_to_proto(
            proposals, refusals, counters.single_step_seconds, counters.step_seconds
        )
        self._loop.call_soon_threadsafe(self._enqueue, connection, message)

    def _enqueue(self, connection: int, message: drafter_pb2.DraftResponse) -> None:
        outbox = self._outboxes.get(connection)
        if outbox is not None:
            outbox.put_nowait(message)
        span = self._rounds.pop(connection, None)
        if span is not None:
            tokens = sum(len(proposal.token_ids) for proposal in message.proposals)
            span.set({"slipstream.draft_tokens": tokens})
            span.end()

    @streaming
    async def Draft(
        self,
        request_iterator: AsyncIterator[drafter_pb2.DraftRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[drafter_pb2.DraftResponse]:
        theirs = await self._greet(request_iterator)
        if self._refusal:
            raise Unavailable(self._refusal)
        connection = next(self._numbers)
        self._context.connect(connection, theirs.kv_address)
        outbox: asyncio.Queue[drafter_pb2.DraftResponse | None] = asyncio.Queue()
        self._outboxes[connection] = outbox
        # Asked for now: of a call that has ended gRPC has no peer to tell, and crashes.
        peer = context.peer()
        log.info("verifier %s connected", peer)
        reader = asyncio.create_task(self._read(connection, request_iterator))
        # The verifier's end of the stream, or a command that cannot be read, ends ours.
        reader.add_done_callback(lambda _: outbox.put_nowait(None))
        try:
            yield drafter_pb2.DraftResponse(hello=self._own_hello())
            while (message := await outbox.get()) is not None:
                yield message
            if not reader.done():
                raise Unavailable(self._refusal or "the drafter lost its shards")
            reader.result()
        finally:
            reader.cancel()
            del self._outboxes[connection]
            self._rounds.pop(connection, NO_SPAN).end()
            self._engine.disconnect(connection)
            await self._context.disconnect(connection)
            log.info("verifier %s left", peer)

    async def _greet(self, requests: AsyncIterator[drafter_pb2.DraftRequest]) -> drafter_pb2.Hello:
        """Reads the verifier's Hello. Raises InvalidRequest, ModelMismatch or DeadlineExceeded."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT_SECONDS):
                first = await anext(aiter(requests), None)
        except TimeoutError:
            raise DeadlineExceeded("a draft stream began without a hello") from None
        if first is None or not first.commands or not first.commands[0].HasField("hello"):
            raise InvalidRequest("the first command of a draft stream must be a hello")
        theirs, own = first.commands[0].hello, self._own_hello()
        if theirs.model_fingerprint != own.model_fingerprint:
            log.warning("a verifier with another model was refused")
            raise ModelMismatch(
                f"the drafter serves model {own.model_fingerprint[:12]}, the verifier "
                f"{theirs.model_fingerprint[:12]}; start both with the same model"
            )
        return theirs

    def _own_hello(self) -> drafter_pb2.Hello:
        loaded = self._engine.runner.loaded
        return drafter_pb2.Hello(
            model_fingerprint=loaded.fingerprint,
            vocab_size=loaded.config.vocab_size,
            incarnation=self._incarnation,
            host=host_id(),
            cores=self._cores,
        )

    async def _read(
        self, connection: int, requests: AsyncIterator[drafter_pb2.DraftRequest]
    ) -> None:
        async for request in requests:
            if request.traceparent:
                self._rounds.pop(connection, NO_SPAN).end()
                parent = {"traceparent": request.traceparent}
                self._rounds[connection] = self._tracing.span("draft", "server", parent)
            self._engine.obey(connection, [command_from_proto(c) for c in request.commands])

    @unary
    async def GetDrafter(
        self, request: drafter_pb2.GetDrafterRequest, context: grpc.aio.ServicerContext
    ) -> drafter_pb2.GetDrafterResponse:
        engine = self._engine
        loaded, counters = engine.runner.loaded, engine.counters
        return drafter_pb2.GetDrafterResponse(
            model_fingerprint=loaded.fingerprint,
            layer_plan=loaded.running_plan.describe(),
            open_sequences=engine.num_open,
            steps=counters.steps,
            drafted_tokens=counters.drafted_tokens,
            rolled_back_tokens=counters.rolled_back_tokens,
            step_seconds=counters.single_step_seconds,
            kv_blocks_used=engine.runner.pool.num_used,
            weight_bytes=loaded.weight_bytes,
            plan_trials=self._adaptive.trials,
            plan_moves=self._adaptive.moves,
            spare_seconds=self._adaptive.spare_seconds,
            guessed_tokens=counters.guessed_tokens,
            right_guesses=counters.right_guesses,
            early_stops=counters.early_stops,
            kv=self._kv_counters(),
            zone=self._zone.name,
            verifiers=len(self._outboxes),
            host=host_id(),
            device=str(loaded.device),
        )

    def _kv_counters(self) -> drafter_pb2.KvCounters:
        context, engine = self._context.counters, self._engine.counters
        return drafter_pb2.KvCounters(
            mode=self._context.mode,
            pulls=context.pulls,
            pulled_positions=context.pulled_positions,
            pulled_bytes=context.pulled_bytes,
            shared_bytes=context.shared_bytes,
            pull_seconds=context.pull_seconds,
            pull_wait_seconds=context.pull_wait_seconds,
            refreshed_positions=context.refreshed_positions,
            refreshed_bytes=context.refreshed_bytes,
            fallbacks=dict(context.fallbacks),
            prefilled_positions=engine.prefilled_positions,
            prefill_seconds=engine.prefill_seconds,
        )
