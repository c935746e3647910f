"""A client of the gRPC door that resumes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc

from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of
from tests.chaos.answers import Answer
from tests.chaos.asks import Ask, grpc_request
from tests.chaos.tries import Broken, GaveUp, Refused, Tries, our_fault

_SILENT = 5.0
_CODE = "slipstream-error-code"


class GrpcClient:
    """One client. Its answers hold what went wrong; it raises nothing.

    Args:
        channels: to the gateways, by address; shared with others.
    """

    def __init__(self, channels: Mapping[str, grpc.aio.Channel], tries: Tries) -> None:
        self._channels = channels
        self._tries = tries
        self._clock = asyncio.get_running_loop().time

    async def ask(self, ask: Ask, key: str, extra: Mapping[str, Any]) -> Answer:
        """Asks until it has the whole answer, or its patience is over; `extra` are fields."""
        answer = Answer(began=self._clock())
        self._tries.start(answer.began)
        try:
            while not answer.done:
                try:
                    await self._stream(answer, ask, key, extra)
                except (Refused, Broken) as failure:
                    await self._tries.after(failure, answer)
        except GaveUp as failure:
            answer.failure = str(failure)
        answer.ended = self._clock()
        return answer

    async def _stream(self, answer: Answer, ask: Ask, key: str, extra: Mapping[str, Any]) -> None:
        """Receives responses until the end, from where it was. Raises Refused and Broken."""
        if answer.last_event:
            request = gateway_pb2.GatewayServiceGenerateRequest(resume_from=answer.last_event)
        else:
            self._tries.anew(answer)
            request = grpc_request(ask, idempotency_key=key, **extra)
        tried = answer.ways["tried"] > 0
        answer.ways["tried"] += 1
        stub = gateway_pb2_grpc.GatewayServiceStub(self._channels[self._tries.gateway.grpc])
        call = stub.Generate(request, timeout=max(1.0, self._tries.left))
        try:
            while True:
                async with asyncio.timeout(_SILENT):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    break
                self._tries.progress()
                if tried:
                    answer.ways["resumed" if request.resume_from else "repeated"] += 1
                    tried = False
                answer.named(message.event_id, answer.message(message, self._clock()))
        except TimeoutError as failure:
            raise Broken("the stream is silent") from failure
        except grpc.aio.AioRpcError as failure:
            raise _of(failure) from failure
        finally:
            call.cancel()
        ended = sum(bool(heard.finish_reason) for heard in answer.choices.values())
        if ended < ask.n:
            raise Broken("the stream ended before its end")
        answer.done = True


def _of(failure: grpc.aio.AioRpcError) -> Refused | Broken:
    """What the server said; what has no word of it is of the transport."""
    error = error_of(failure)
    if dict(failure.trailing_metadata() or ()).get(_CODE):
        return Refused(error.code, error.message, error.retry_after)
    if failure.code() is grpc.StatusCode.INTERNAL and error.message.startswith("internal error"):
        return our_fault(error.message)
    return Broken(f"{failure.code().name}: {failure.details()}")
