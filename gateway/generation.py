"""The generation core that both front doors share: a checked request in, pieces out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from gateway.continuation import Continuation, Piece
from gateway.course import Course, pieces_of
from gateway.metrics import Metrics
from gateway.prompts import Prompts
from gateway.request import GenerationRequest, check, stop_conditions
from gateway.stop_strings import StopStrings
from gateway.tokenizer import Tokenizer
from gateway.verifiers.pool import VerifierPool
from gateway.verifiers.relay import Relay
from gateway.verifiers.served import ServedModel
from gateway.watch import watched
from slipstream.core.errors import ModelNotFound, StreamUnread, Unavailable
from slipstream.wire.codec import sampling_to_proto, stop_to_proto
from slipstream.wire.proto import verifier_pb2
from slipstream.wire.telemetry.tracing import NO_TRACING, Headers, Tracing

# Pieces of a request's streams that wait for the client, beyond one in the hand of each stream.
_MERGED_PIECES = 16
log = logging.getLogger(__name__)


class GenerationService:
    """Runs requests on the verifiers. One for the process.

    Args:
        name: the model name that clients use.
        tokenizer: of that model.
        pool: of the verifiers.
        metrics: told about every request.
        isolate_caches: whether each tenant has prefix caches of its own.
        tracing: gets a span of every request.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        pool: VerifierPool,
        metrics: Metrics,
        *,
        isolate_caches: bool = True,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.pool = pool
        self.prompts = Prompts(tokenizer, lambda: pool.model().context_length)
        self.metrics = metrics
        self._isolate_caches = isolate_caches
        metrics.verifier_calls, metrics.verifiers = lambda: pool.calls, pool.states
        metrics.discovery = lambda: pool.discovery
        self._tracing = tracing

    def check_model(self, name: str) -> None:
        """Raises ModelNotFound unless `name` is served here."""
        if name != self.name:
            raise ModelNotFound(
                f"the model '{name}' does not exist; this server has '{self.name}'", param="model"
            )

    def model(self) -> ServedModel:
        """What is served now. Raises Unavailable: there is no verifier."""
        return self.pool.model()

    async def run(
        self, request: GenerationRequest, course: Course | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of all continuations as they come; each ends with a finish reason.

        Closing the generator, or cancelling the task that runs it, cancels all verifier calls.

        Args:
            course: what was before; pieces that the client has are left out. One that names pasts
                waits for a verifier, where a new one is refused. Its model's key is filled in.

        Raises:
            InvalidRequest: the request cannot be served; says which field and why.
            DeadlineExceeded: its time is over.
            Unavailable: there is no verifier, or it was lost on the way and nobody went on.
            SlipstreamError: any other that the verifier raised.
        """
        with (
            watched(self._tracing, request, self.name) as watch,
            self.metrics.request(request.prompt_tokens) as times,
        ):
            course = course or Course()
            model = await self._model(request, course)
            jobs = self._jobs(request, model)
            trace = watch.span.headers
            streams = [
                self._stream(index, job, request, model, trace, course)
                for index, job in enumerate(jobs)
            ]
            try:
                async with contextlib.aclosing(_merge(streams)) as pieces:
                    async for piece in pieces:
                        watch.piece(piece)
                        times.piece(piece)
                        yield piece
            except StreamUnread:
                # The verifier was sooner to cut it.
                self.metrics.cut["unread"] += 1
                raise

    def check(self, request: GenerationRequest) -> None:
        """Raises what `run` does for a request that no verifier would take, without running it."""
        model = self.pool.model()
        for prompt in request.prompts:
            stop_conditions(request, len(prompt), model)
        check(request, model)
        request.terms.remaining()

    def cut(self, request_id: str, seconds: float) -> None:
        """Notes that a client which read nothing for so many seconds is cut."""
        self.metrics.cut["unread"] += 1
        log.warning("%s: cut, since the client read nothing for %g s", request_id, seconds)

    async def _model(self, request: GenerationRequest, course: Course) -> ServedModel:
        """The model that decides all of the request's tokens.

        Raises:
            DeadlineExceeded: the request's time is over.
            Unavailable: nobody serves it, which what has begun waits for.
        """
        give_up = time.monotonic() + self.pool.limits.failover
        choices = len(request.prompts) * request.n
        complete = all(course.past(index).ended for index in range(choices))
        while True:
            try:
                model = self.pool.model(course.model_key)
            except Unavailable:
                left = give_up - time.monotonic()
                known = self.pool.known_model
                if complete and known is not None:
                    # It is only told again.
                    return known
                if not course.pasts or left <= 0:
                    raise
                seconds = request.terms.remaining()
                await self.pool.changed(left if seconds is None else min(left, seconds))
            else:
                course.model_key = model.key
                return model

    def _jobs(
        self, request: GenerationRequest, model: ServedModel
    ) -> list[verifier_pb2.GenerateRequest]:
        # First what is cheap: a prompt that is far too long is not looked at in detail.
        stops = [stop_conditions(request, len(prompt), model) for prompt in request.prompts]
        check(request, model)
        terms = request.terms
        salt = terms.salt(isolate=self._isolate_caches)
        jobs: list[verifier_pb2.GenerateRequest] = []
        for prompt, conditions in zip(request.prompts, stops, strict=True):
            stop = stop_to_proto(conditions)
            for _ in range(request.n):
                seed = request.choice_seed(len(jobs))
                jobs.append(
                    verifier_pb2.GenerateRequest(
                        request_id=f"{request.request_id}-{len(jobs)}",
                        prompt_token_ids=prompt,
                        sampling=sampling_to_proto(replace(request.sampling, seed=seed)),
                        stop=stop,
                        speculative=request.speculative,
                        logprobs=request.logprobs,
                        tenant=terms.tenant,
                        cache_salt=salt,
                        priority=terms.priority,
                    )
                )
        return jobs

    async def _stream(
        self,
        index: int,
        job: verifier_pb2.GenerateRequest,
        request: GenerationRequest,
        model: ServedModel,
        trace: Headers,
        course: Course,
    ) -> AsyncGenerator[Piece, None]:
        continuation = self.continuation(index, request, model)
        past = course.past(index)
        relay = Relay(
            self.pool,
            self.metrics,
            job,
            past,
            course,
            ends=_ends(request, model),
            remaining=request.terms.remaining,
            trace=trace,
        )
        async with contextlib.aclosing(_messages(index, relay, course)) as messages:
            async for message in messages:
                for piece in pieces_of(continuation, message, past.seen):
                    yield piece
                    if piece.finish_reason is not None:
                        # Where it is a stop string's, leaving cancels the verifier's work.
                        return
        raise continuation.cut()

    def continuation(
        self, index: int, request: GenerationRequest, model: ServedModel
    ) -> Continuation:
        """One of the request's, before its first token."""
        return Continuation(
            index,
            self.tokenizer.detokenizer(),
            StopStrings(request.stop_strings),
            _ends(request, model),
        )


def _ends(request: GenerationRequest, model: ServedModel) -> frozenset[int]:
    """Tokens that end a continuation."""
    eos = frozenset() if request.ignore_eos else model.eos_token_ids
    return request.stop_token_ids | eos


async def _messages(
    index: int, relay: Relay, course: Course
) -> AsyncGenerator[verifier_pb2.GenerateResponse, None]:
    """All messages of a continuation: those that are known, then those that are new."""
    past = course.past(index)
    for message in past.messages:
        yield message
    if past.ended:
        return
    async with contextlib.aclosing(relay.messages()) as messages:
        async for message in messages:
            course.heard(index, message)
            yield message


async def _merge(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """The pieces of all streams in the order they come; the first failure ends them all.

    None is given out before every stream has its first: until then an error refuses the whole
    request, as it does where there is one stream, and afterwards none is refused any more.
    """
    if len(streams) == 1:
        async with contextlib.aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    # Bounded, so that a client which reads slowly holds up its own streams and fills no memory.
    queue: asyncio.Queue[Piece | Exception | None] = asyncio.Queue(_MERGED_PIECES)
    begun = asyncio.Barrier(len(streams))
    tasks = [asyncio.create_task(_pump(stream, queue, begun)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    stream: AsyncGenerator[Piece, None],
    queue: asyncio.Queue[Piece | Exception | None],
    begun: asyncio.Barrier,
) -> None:
    """Moves pieces on; holds the first, and with it the stream, until all streams have begun."""
    try:
        async with contextlib.aclosing(stream) as pieces:
            held = True
            async for piece in pieces:
                if held:
                    await begun.wait()
                    held = False
                await queue.put(piece)
        await queue.put(None)
    # Handed to the consumer, which raises it: one failure ends the whole request.
    except Exception as failure:  # noqa: BLE001
        await queue.put(failure)
