"""A verifier without a model, to test clients of VerifierService against.

async with FakeVerifier([5, 6, 7]) as verifier:
    channel = slipstream.wire.transport.channel(verifier.address)

It can come to grief in all the ways in which real ones do, for tests of failover: `dies_after`,
`breaks`, `hang_after`, and the methods `stop`, `drain` and `freeze`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Self

import grpc

from slipstream.core.errors import DeadlineExceeded, Draining, InvalidParameter
from slipstream.wire import status
from slipstream.wire.codec import sampling_from_proto, stop_from_proto
from slipstream.wire.fake_behaviour import (
    Break,
    FakeBehaviour,
    TokenFunction,
    borders,
    count_step,
    token_of,
)
from slipstream.wire.proto import types_pb2, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.transport import Server

__all__ = ["Break", "FakeBehaviour", "FakeVerifier", "TokenFunction"]

_SERVICE = "slipstream.v1.VerifierService"
_GIVEN_UP = verifier_pb2.GenerateResponse(finish_reason=types_pb2.FINISH_REASON_CANCELLED)
_STATUSES = {
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "internal": grpc.StatusCode.INTERNAL,
    "cancelled": grpc.StatusCode.CANCELLED,
}


class FakeVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Serves VerifierService on a free port. `behaviour` may be replaced between requests.

    Args:
        behaviour: or just its tokens.
        model: what GetModel tells; without an incarnation it has a new one after each `start`.

    Attributes:
        address: once started.
        requests: every GenerateRequest received, in order.
        metadata: what came with each of them.
        cancelled: the request ids whose calls were cancelled.
        running: calls in progress.
        waiting: what it tells of calls that wait; `expected_wait`, of the seconds.
        drafter_connected: what it tells of its drafter.
        draining: since `drain`, until `start`.
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
        self.running = self.waiting = 0
        self.expected_wait = 0.0
        self.drafter_connected = self.draining = False
        self.sent: Counter[str] = Counter()
        self._server: Server | None = None
        self._lives = 0
        self._grace = 0.0
        # Set when it drains, and while it is not frozen.
        self._drain, self._thawed = asyncio.Event(), asyncio.Event()
        self._thawed.set()
        self._told: set[str] = set()
        self._broken: set[tuple[str, int]] = set()
        self._death: asyncio.Task[None] | None = None

    async def start(self, address: str = "127.0.0.1:0") -> str:
        """Serves; returns the address. Again after `stop`, as a process that is started again."""
        self.draining = False
        self._drain.clear()
        self._told.clear()
        self._lives += 1
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

    async def drain(self, seconds: float = 10.0) -> None:
        """As at SIGTERM: refuses new calls, and tells those that run how long they may go on. It
        stays as long as the test wants: `stop` ends it."""
        self.draining, self._grace = True, seconds
        self._drain.set()
        await self.set_serving(False)

    def freeze(self) -> None:
        """As at SIGSTOP: answers nothing, closes nothing, until `thaw`."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

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
        await self._thawed.wait()
        told = verifier_pb2.GetModelResponse()
        told.CopyFrom(self.model)
        told.incarnation = told.incarnation or f"life {self._lives}"
        told.draining = self.draining
        return told

    @status.unary
    async def GetStatus(self, request: Any, context: Any) -> verifier_pb2.GetStatusResponse:  # noqa: N802, ARG002
        await self._thawed.wait()
        return verifier_pb2.GetStatusResponse(
            drafter_connected=self.drafter_connected,
            drafter_detail="" if self.drafter_connected else "a fake has no drafter",
            requests_running=self.running,
            requests_waiting=self.waiting,
            expected_wait_seconds=self.expected_wait,
            draining=self.draining,
        )

    @status.streaming
    async def Generate(  # noqa: N802
        self,
        request: verifier_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[verifier_pb2.GenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.draining:
            raise Draining("the verifier is about to stop", retry_after=1.0)
        behaviour = self.behaviour
        self.running += 1
        try:
            kept = behaviour.keeps_deadlines and request.HasField("deadline_seconds")
            seconds = request.deadline_seconds if kept else None
            async with asyncio.timeout(seconds):
                async for response in self._respond(request, behaviour):
                    yield response
                    self.sent[request.request_id] += len(response.tokens)
        except _Broken as broken:
            if broken.how == "finish":
                yield _GIVEN_UP
            elif broken.how != "end":
                # A client that has gone is told nothing.
                with contextlib.suppress(grpc.aio.InternalError):
                    await context.abort(_STATUSES[broken.how], "the stream broke")
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
        sent = len(request.committed_token_ids)
        await self._pause(behaviour.first_delay)
        for border in borders(behaviour.chunks if speculative else (1,), sent):
            chunk = ids[sent:border]
            end, last = sent + len(chunk), border >= len(ids)
            await self._pause(behaviour.delay)
            async for sign in self._before(request, behaviour, sent, end):
                yield sign
            count_step(stats, len(chunk))
            response = verifier_pb2.GenerateResponse(
                tokens=[token_of(token, request) for token in chunk],
                stats=stats if last or behaviour.tells_stats else None,
                seed=request.sampling.seed,
                cached_prompt_tokens=min(behaviour.cached, len(request.prompt_token_ids)),
            )
            how = self._break(request, behaviour, end, end + 1) if last else None
            if last and how is None:
                response.finish_reason = finish
            yield response
            if how is not None:
                raise _Broken(how)
            if last:
                return
            sent = end

    async def _before(
        self, request: verifier_pb2.GenerateRequest, behaviour: FakeBehaviour, start: int, end: int
    ) -> AsyncIterator[verifier_pb2.GenerateResponse]:
        """What comes before the tokens from `start` up to `end`, or instead of them."""
        await self._thawed.wait()
        async for sign in self._told_draining(request):
            yield sign
        if behaviour.error is not None and end > behaviour.error_after:
            raise behaviour.error
        while behaviour.hang_after is not None and end > behaviour.hang_after:
            await self._pause(behaviour.beat or 3600.0)
            async for sign in self._told_draining(request):
                yield sign
            if behaviour.beat:
                yield verifier_pb2.GenerateResponse()
        if behaviour.dies_after is not None and end > behaviour.dies_after:
            self._death = asyncio.create_task(self.stop())
            # Cut there, with all the others.
            await asyncio.sleep(3600.0)
        how = self._break(request, behaviour, start, end)
        if how is not None:
            raise _Broken(how)

    async def _told_draining(
        self, request: verifier_pb2.GenerateRequest
    ) -> AsyncIterator[verifier_pb2.GenerateResponse]:
        """That it drains, once."""
        if self.draining and request.request_id not in self._told:
            self._told.add(request.request_id)
            yield verifier_pb2.GenerateResponse(draining_seconds=self._grace)

    def _break(
        self, request: verifier_pb2.GenerateRequest, behaviour: FakeBehaviour, start: int, end: int
    ) -> Break | None:
        """How the stream breaks instead of the tokens from `start` up to `end`."""
        for place, how in behaviour.breaks.items():
            if start <= place < end and (request.request_id, place) not in self._broken:
                self._broken.add((request.request_id, place))
                return how
        return None

    async def _pause(self, seconds: float) -> None:
        """Sleeps; only until it drains, where it does."""
        if seconds <= 0 or self.draining:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._drain.wait()

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
        committed = request.committed_token_ids
        if len(committed) >= stop.max_tokens or ends.intersection(committed):
            raise InvalidParameter("nothing is left to decide", param="committed_token_ids")
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


class _Broken(Exception):
    """The stream is to end here."""

    def __init__(self, how: Break) -> None:
        super().__init__(how)
        self.how = how
