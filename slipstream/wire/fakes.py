"""A verifier without a model, to test clients of VerifierService against.

async with FakeVerifier([5, 6, 7]) as verifier:
    channel = slipstream.wire.transport.channel(verifier.address)
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import grpc

from slipstream.core.errors import DeadlineExceeded, InvalidParameter, SlipstreamError
from slipstream.core.params import SamplingParams
from slipstream.wire import status
from slipstream.wire.codec import sampling_from_proto, stop_from_proto
from slipstream.wire.proto import types_pb2, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.transport import Server

TokenFunction = Callable[[Sequence[int], SamplingParams, int], int]
_SERVICE = "slipstream.v1.VerifierService"


@dataclass(frozen=True, slots=True)
class FakeBehaviour:
    """How the fake answers. All times in seconds.

    Attributes:
        tokens: a fixed script, after whose end the generation stops; or a function of the prompt,
            the parameters and the number of tokens generated so far, that gives the next token.
        chunks: how many tokens each message carries, in turn, and again from the start.
        first_delay: before the first message.
        delay: before every message.
        error: raised instead of the message that would carry token number `error_after`.
        hang_after: sends nothing from this token number on, until the call is cancelled.
        beat: instead of nothing, a message without tokens every so many seconds; 0 for none.
        speculative: the server's default for requests that leave it open.
        cached: of a prompt's tokens, those that it says it had already.
        keeps_deadlines: whether it ends what is past its deadline, as a verifier should.
    """

    tokens: Sequence[int] | TokenFunction
    chunks: Sequence[int] = (1,)
    first_delay: float = 0.0
    delay: float = 0.0
    error: SlipstreamError | None = None
    error_after: int = 0
    hang_after: int | None = None
    beat: float = 0.0
    speculative: bool = True
    cached: int = 0
    keeps_deadlines: bool = True


class FakeVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Serves VerifierService on a free port. `behaviour` may be replaced between requests.

    Args:
        behaviour: or just its tokens.
        model: what GetModel tells.

    Attributes:
        address: once started.
        requests: every GenerateRequest received, in order.
        metadata: what came with each of them.
        cancelled: the request ids whose calls were cancelled.
        running: calls in progress.
        sent: tokens that the clients' connections have taken, by request id.
    """

    def __init__(
        self,
        behaviour: FakeBehaviour | Sequence[int] | TokenFunction,
        model: verifier_pb2.GetModelResponse | None = None,
    ) -> None:
        if not isinstance(behaviour, FakeBehaviour):
            behaviour = FakeBehaviour(behaviour)
        self.behaviour = behaviour
        self.model = model or verifier_pb2.GetModelResponse(
            model_id="fake", fingerprint="fake", context_length=4096, vocab_size=65536
        )
        self.address = ""
        self.requests: list[verifier_pb2.GenerateRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.cancelled: list[str] = []
        self.running = 0
        self.sent: Counter[str] = Counter()
        self._server: Server | None = None

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """Serves; returns the address."""
        server = Server(address, [_SERVICE])
        verifier_pb2_grpc.add_VerifierServiceServicer_to_server(self, server.grpc)
        port = await server.start()
        await server.set_serving(True)
        self._server = server
        self.address = f"{address.rpartition(':')[0]}:{port}"
        return self.address

    async def stop(self) -> None:
        """Cuts every call, as a killed process would."""
        if self._server is not None:
            await self._server.stop(grace=0)
            self._server = None

    async def set_serving(self, serving: bool) -> None:
        """What its health check answers."""
        if self._server is not None:
            await self._server.set_serving(serving)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @status.unary
    async def GetModel(self, request: Any, context: Any) -> verifier_pb2.GetModelResponse:  # noqa: N802, ARG002
        return self.model

    @status.unary
    async def GetStatus(self, request: Any, context: Any) -> verifier_pb2.GetStatusResponse:  # noqa: N802, ARG002
        return verifier_pb2.GetStatusResponse(
            drafter_detail="a fake has no drafter", requests_running=self.running
        )

    @status.streaming
    async def Generate(  # noqa: N802
        self,
        request: verifier_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[verifier_pb2.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        self.running += 1
        try:
            kept = self.behaviour.keeps_deadlines and request.HasField("deadline_seconds")
            seconds = request.deadline_seconds if kept else None
            async with asyncio.timeout(seconds):
                async for response in self._respond(request, self.behaviour):
                    yield response
                    self.sent[request.request_id] += len(response.tokens)
        except TimeoutError as failure:
            raise DeadlineExceeded("the deadline is over") from failure
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.append(request.request_id)
            raise
        finally:
            self.running -= 1

    async def _respond(
        self, request: verifier_pb2.GenerateRequest, behaviour: FakeBehaviour
    ) -> AsyncIterator[verifier_pb2.GenerateResponse]:
        ids, finish = self._plan(request, behaviour)
        speculative = behaviour.speculative
        if request.HasField("speculative"):
            speculative = request.speculative
        stats = types_pb2.SpeculationStats()
        await asyncio.sleep(behaviour.first_delay)
        sent = 0
        for size in itertools.cycle(behaviour.chunks if speculative else (1,)):
            chunk = ids[sent : sent + size]
            await asyncio.sleep(behaviour.delay)
            if behaviour.error is not None and sent + len(chunk) > behaviour.error_after:
                raise behaviour.error
            if behaviour.hang_after is not None and sent + len(chunk) > behaviour.hang_after:
                async for beat in _hang(behaviour.beat):
                    yield beat
            sent += len(chunk)
            _count(stats, len(chunk))
            response = verifier_pb2.GenerateResponse(
                tokens=[_token(token, request) for token in chunk],
                seed=request.sampling.seed,
                cached_prompt_tokens=min(behaviour.cached, len(request.prompt_token_ids)),
            )
            if sent >= len(ids):
                response.finish_reason = finish
                response.stats.CopyFrom(stats)
                yield response
                return
            yield response

    def _plan(
        self, request: verifier_pb2.GenerateRequest, behaviour: FakeBehaviour
    ) -> tuple[list[int], types_pb2.FinishReason]:
        """All tokens of the generation, and why it ends."""
        params = sampling_from_proto(request.sampling)
        stop = stop_from_proto(request.stop)
        if not request.prompt_token_ids:
            raise InvalidParameter("the prompt is empty", param="prompt")
        ends = set(stop.stop_token_ids)
        if not stop.ignore_eos:
            ends.update(self.model.eos_token_ids)
        ids: list[int] = []
        while len(ids) < stop.max_tokens:
            if callable(behaviour.tokens):
                ids.append(behaviour.tokens(request.prompt_token_ids, params, len(ids)))
            elif len(ids) < len(behaviour.tokens):
                ids.append(behaviour.tokens[len(ids)])
            else:
                return ids, types_pb2.FINISH_REASON_STOP
            if ids[-1] in ends:
                return ids, types_pb2.FINISH_REASON_STOP
        return ids, types_pb2.FINISH_REASON_LENGTH


async def _hang(beat: float) -> AsyncIterator[verifier_pb2.GenerateResponse]:
    """Never ends."""
    while True:
        await asyncio.sleep(beat or 3600.0)
        yield verifier_pb2.GenerateResponse()


def _token(token: int, request: verifier_pb2.GenerateRequest) -> types_pb2.Token:
    """With made-up log probabilities, the most likely first, where they are asked for."""
    if not request.HasField("logprobs"):
        return types_pb2.Token(id=token)
    top = [
        types_pb2.TopLogprob(token_id=token + rank, logprob=-0.5 - rank)
        for rank in range(request.logprobs)
    ]
    return types_pb2.Token(id=token, logprob=-0.5, top_logprobs=top)


def _count(stats: types_pb2.SpeculationStats, size: int) -> None:
    """A message of k tokens is a step that accepted k - 1 drafts of k - 1."""
    stats.num_steps += 1
    accepted = size - 1
    if accepted <= 0:
        return
    stats.num_spec_steps += 1
    stats.num_draft_tokens += accepted
    stats.num_accepted_tokens += accepted
    histogram = list(stats.acceptance_histogram)
    histogram += [0] * (accepted + 1 - len(histogram))
    histogram[accepted] += 1
    stats.ClearField("acceptance_histogram")
    stats.acceptance_histogram.extend(histogram)
