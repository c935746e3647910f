"""The verifier's gRPC face: requests in, committed tokens out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from slipstream.core.errors import InvalidParameter, StreamUnread, Unavailable
from slipstream.core.params import MAX_LOGPROBS
from slipstream.discovery.zone import Zone
from slipstream.wire.codec import sampling_from_proto, stop_from_proto
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import types_pb2, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.status import unary
from slipstream.wire.telemetry.tracing import NO_TRACING, Tracing
from verifier_service.departure import Departure
from verifier_service.drafter_link import DrafterLink
from verifier_service.engine import VerifierEngine
from verifier_service.generation import (
    CommittedToken,
    Finish,
    GenerationRequest,
    Progress,
    SpeculationCounts,
)
from verifier_service.kv_import import KvImports
from verifier_service.outbox import Outbox
from verifier_service.watch import watched

log = logging.getLogger(__name__)
_FINISH = {
    Finish.STOP: types_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: types_pb2.FINISH_REASON_LENGTH,
    Finish.CANCELLED: types_pb2.FINISH_REASON_CANCELLED,
}
# A request may queue, or have given its place back for a while: once in so many seconds a silent
# stream looks whether the engine gets on, and says so with an empty message. Well below any
# sensible --idle-timeout of the gateway.
SIGN_SECONDS = 2.0
_SIGN = verifier_pb2.GenerateResponse()


@dataclass(frozen=True, slots=True)
class Identity:
    """What GetModel says beside what the engine knows."""

    name: str
    precision: str
    exactness: str
    speculative: bool
    incarnation: str = ""
    kv_address: str = ""
    zone: Zone = field(default_factory=Zone)


class VerifierServicer(verifier_pb2_grpc.VerifierServiceServicer):
    """Translates between gRPC and the engine, which tells of its progress through `mailbox`.

    Args:
        send_timeout: seconds for which a client may leave a full stream unread.
        departure: says whether the verifier is about to stop.
        imports: brings in keys and values that others have; None: all are computed.
    """

    def __init__(
        self,
        engine: VerifierEngine,
        identity: Identity,
        link: DrafterLink | None,
        mailbox: Mailbox,
        send_timeout: float = 300.0,
        tracing: Tracing = NO_TRACING,
        departure: Departure | None = None,
        imports: KvImports | None = None,
    ) -> None:
        self._engine = engine
        self._imports = imports
        self._departure = departure or Departure()
        self._send_timeout = send_timeout
        self._identity = identity
        self._link = link
        self._mailbox = mailbox
        self._tracing = tracing

    @unary
    async def Generate(
        self, request: verifier_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> None:
        outbox = Outbox()

        def listen(progress: Progress) -> None:
            self._mailbox.post(lambda: outbox.put(progress))

        parsed, warned = self._parse(request, listen), False
        with (
            self._departure.stream(outbox),
            watched(self._tracing, parsed, context.invocation_metadata()) as watch,
        ):
            if self._imports is not None:
                parsed = await self._imports.fetch(parsed)
            cancel = self._engine.submit(parsed)
            try:
                # Apart from the first message: one that is never read would hold it up, and then
                # gRPC could not say why the stream is cut.
                await context.send_initial_metadata(())
                while True:
                    progress = await self._next(outbox)
                    if self._departure.begun and not warned:
                        warned = True
                        await self._write(context, self._warning(), parsed.request_id)
                    elif progress is None:
                        await self._write(context, _SIGN, parsed.request_id)
                    if progress is None:
                        continue
                    watch.heard(progress)
                    if progress.tokens or progress.error is None:
                        response = _to_proto(progress, parsed.params.seed)
                        await self._write(context, response, parsed.request_id)
                    if progress.error is not None:
                        raise progress.error
                    if progress.finish is not None:
                        return
            finally:
                # Also where the client went away: freeing a generation that ended does nothing.
                cancel()

    async def _next(self, outbox: Outbox) -> Progress | None:
        """What is new; None: nothing yet, but the engine does steps, or it is about to stop. One
        that hangs says nothing.

        Raises:
            Unavailable: the engine has ended, or has no time left.
        """
        while True:
            before = self._engine.counters.steps
            try:
                async with asyncio.timeout(SIGN_SECONDS):
                    return await outbox.take()
            except TimeoutError:
                if not self._engine.alive:
                    raise Unavailable("the verifier's engine has stopped") from None
                if self._engine.counters.steps > before:
                    return None

    def _warning(self) -> verifier_pb2.GenerateResponse:
        return verifier_pb2.GenerateResponse(draining_seconds=self._departure.seconds_left)

    async def _write(
        self,
        context: grpc.aio.ServicerContext,
        response: verifier_pb2.GenerateResponse,
        request_id: str,
    ) -> None:
        """Sends a message; waits while the client has the transport's buffers full.

        Raises:
            StreamUnread: it has read nothing for too long.
        """
        try:
            async with asyncio.timeout(self._send_timeout):
                await context.write(response)
        except TimeoutError:
            self._engine.counters.cut_clients += 1
            why = f"the client has read nothing for {self._send_timeout:g} s"
            log.warning("%s is cut: %s", request_id, why)
            raise StreamUnread(why) from None

    def _parse(
        self, request: verifier_pb2.GenerateRequest, listener: Callable[[Progress], None]
    ) -> GenerationRequest:
        speculative = self._identity.speculative
        if request.HasField("speculative"):
            speculative = request.speculative
        logprobs = request.logprobs if request.HasField("logprobs") else None
        if logprobs is not None and logprobs > MAX_LOGPROBS:
            raise InvalidParameter(
                f"logprobs must be at most {MAX_LOGPROBS}, got {logprobs}", param="logprobs"
            )
        return GenerationRequest(
            request_id=request.request_id,
            prompt=tuple(request.prompt_token_ids),
            params=sampling_from_proto(request.sampling),
            stop=stop_from_proto(request.stop),
            speculative=speculative,
            logprobs=logprobs,
            listener=listener,
            tenant=request.tenant,
            cache_salt=request.cache_salt,
            priority=request.priority,
            deadline_seconds=(
                request.deadline_seconds if request.HasField("deadline_seconds") else None
            ),
            committed=tuple(request.committed_token_ids),
            resumed=request.resumed,
            kv_holder=request.kv_holder,
        )

    @unary
    async def GetModel(
        self, request: verifier_pb2.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.GetModelResponse:
        loaded = self._engine.runner.loaded
        return verifier_pb2.GetModelResponse(
            model_id=self._identity.name,
            fingerprint=loaded.fingerprint,
            context_length=self._engine.max_length,
            vocab_size=loaded.config.vocab_size,
            eos_token_ids=sorted(loaded.eos_token_ids),
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device),
            exactness=self._identity.exactness,
            precision=self._identity.precision,
            incarnation=self._identity.incarnation,
            kv_address=self._identity.kv_address,
            zone=self._identity.zone.name,
            draining=self._departure.begun,
        )

    @unary
    async def GetStatus(
        self, request: verifier_pb2.GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> verifier_pb2.GetStatusResponse:
        engine, link = self._engine, self._link
        counters, pool = engine.counters, engine.runner.pool
        placement, target = engine.speculation.placement, engine.speculation.target
        return verifier_pb2.GetStatusResponse(
            drafter_connected=link is not None and link.connected,
            drafter_detail="no drafter configured" if link is None else link.detail,
            requests_running=engine.num_running,
            requests_waiting=engine.num_waiting,
            kv_cache_usage=pool.num_used / pool.num_blocks,
            steps=counters.steps,
            step_seconds=counters.step_seconds,
            model_seconds=engine.runner.model_seconds,
            generated_tokens=counters.generated_tokens,
            prompt_tokens=counters.prompt_tokens,
            draft_tokens=counters.draft_tokens,
            accepted_tokens=counters.accepted_tokens,
            stale_draft_tokens=counters.stale_draft_tokens,
            plain_step_seconds=counters.plain_step_seconds / max(1, counters.plain_steps),
            draft_step_seconds=0.0 if link is None else link.draft_step_seconds,
            drafter_connections=0 if link is None else link.connections,
            kv_blocks_used=pool.num_used,
            open_sequences=engine.num_running,
            draft_tokens_per_position=counters.drafted_by_position,
            accepted_tokens_per_position=counters.accepted_by_position,
            kv_leases=engine.kv.num_leases,
            kv_leased_blocks=engine.kv.num_kept,
            guess_tokens=counters.guess_tokens,
            accepted_guess_tokens=counters.accepted_guess_tokens,
            placement=placement.layout.name,
            placement_on_trial=placement.on_trial,
            draft_length=target.length,
            draft_worth=target.worth,
            preemptions=counters.preemptions,
            cached_prompt_tokens=counters.cached_prompt_tokens,
            kv_blocks_cached=pool.num_cached,
            expected_wait_seconds=engine.expected_wait_seconds,
            resumed=counters.resumed,
            draining=self._departure.begun,
            round_trip_seconds=0.0 if link is None else link.rounds.round_trip.mean,
            round_trips=0 if link is None else link.rounds.round_trip.count,
            without_drafter_seconds=0.0 if link is None else link.absent_seconds,
            drafter_address=link.address if link is not None and link.connected else "",
            kv_imports=counters.kv_imports,
            kv_imported_tokens=counters.kv_imported_tokens,
            kv_imported_bytes=counters.kv_imported_bytes,
            kv_import_failures=counters.kv_import_failures.total(),
        )


def _to_proto(progress: Progress, seed: int) -> verifier_pb2.GenerateResponse:
    response = verifier_pb2.GenerateResponse(
        tokens=[_token(token) for token in progress.tokens],
        cached_prompt_tokens=progress.cached_prompt_tokens,
    )
    if progress.counts is not None:
        response.stats.CopyFrom(_stats(progress.counts))
    if progress.finish is not None:
        response.finish_reason = _FINISH[progress.finish]
        response.seed = seed
    return response


def _token(token: CommittedToken) -> types_pb2.Token:
    if token.logprob is None:
        return types_pb2.Token(id=token.id)
    top = [types_pb2.TopLogprob(token_id=i, logprob=value) for i, value in token.top]
    return types_pb2.Token(id=token.id, logprob=token.logprob, top_logprobs=top)


def _stats(counts: SpeculationCounts) -> types_pb2.SpeculationStats:
    return types_pb2.SpeculationStats(
        num_spec_steps=counts.spec_steps,
        num_steps=counts.steps,
        num_draft_tokens=counts.drafted,
        num_accepted_tokens=counts.accepted,
        acceptance_histogram=counts.histogram,
        num_guess_tokens=counts.guessed,
        num_accepted_guess_tokens=counts.accepted_guesses,
        num_guess_steps=counts.guess_steps,
    )
