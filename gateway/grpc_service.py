"""The gRPC front door: GatewayService over the generation core."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from gateway.chat import known_role, turn
from gateway.grpc_sessions import GrpcTurn, SessionRpcs
from gateway.grpc_shapes import response_of, standing_of
from gateway.keys import KeyRing
from gateway.parts import Parts
from gateway.request import GenerationRequest
from gateway.request_id import request_name
from gateway.runs.answer import Answer
from gateway.runs.background import behind_others
from gateway.runs.cursor import Trail
from gateway.runs.record import Asked, checked_key, digest_of_message
from gateway.terms import MAX_DEADLINE_SECONDS, Terms, deadline
from slipstream.core.errors import (
    BodyTooLarge,
    Cancelled,
    InvalidParameter,
    NotAuthenticated,
    StreamUnread,
)
from slipstream.wire import status
from slipstream.wire.codec import sampling_from_proto
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.telemetry import tracing

SERVICE = "slipstream.v1.GatewayService"
_OPEN_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
Response = gateway_pb2.GatewayServiceGenerateResponse


class GatewayServicer(SessionRpcs, gateway_pb2_grpc.GatewayServiceServicer):
    """Translates requests and pieces; decides nothing itself. `keys` None leaves it open."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.kept.conversations)
        self._service = parts.service
        self._runs, self._background = parts.kept.runs, parts.kept.background
        self._keys = parts.keys
        self._admission = parts.admission
        self._max_body_bytes = parts.max_body_bytes
        self._send_timeout = parts.send_timeout

    @status.unary
    async def Generate(  # noqa: N802
        self, request: gateway_pb2.GatewayServiceGenerateRequest, context: Any
    ) -> None:
        arrived, tenant = time.monotonic(), self._tenant(context)
        tracing.incoming.set(tracing.trace_headers(context.invocation_metadata()))
        with self._admission.enter(tenant):
            if request.ByteSize() > self._max_body_bytes:
                raise BodyTooLarge(
                    f"the request is larger than the limit of {self._max_body_bytes} bytes"
                )
            asked = _asked(request, tenant)
            terms = _terms(request, tenant, arrived, context.time_remaining())
            if asked.background:
                name = await self._in_background(request, asked, terms)
                await self._write(context, Response(request_id=name))
                return
            answer = await self._runs.known(asked)
            if answer is None:
                generation, asked = await self._new(request, asked, terms)
                answer = await self._runs.begin(generation, asked)
            await self._send(context, answer)

    async def _new(
        self, request: gateway_pb2.GatewayServiceGenerateRequest, asked: Asked, terms: Terms
    ) -> tuple[GenerationRequest, Asked]:
        """A request that was not made before, whole, and how it is run."""
        turn = await self._conversations.of(GrpcTurn(request), request, terms.tenant)
        generation = await turn.prepared(self._request(turn.body, terms))
        return generation, turn.asked(asked, generation)

    async def _in_background(
        self, request: gateway_pb2.GatewayServiceGenerateRequest, asked: Asked, terms: Terms
    ) -> str:
        name = await self._background.found(asked)
        if name:
            return name
        generation, asked = await self._new(request, asked, terms)
        patient = generation if request.priority else behind_others(generation)
        return await self._background.begin(patient, asked)

    async def _send(self, context: Any, answer: Answer) -> None:
        past = frozenset() if answer.cursor is None else answer.cursor.ended
        trail: Trail | None = None
        begun = False
        async with contextlib.aclosing(answer.pieces) as pieces:
            async for piece in pieces:
                if not begun:
                    # The record was put while the first token was waited for.
                    trail, begun = await answer.trail(), True
                if piece.index not in past and (piece.text or piece.tokens or piece.finish_reason):
                    await self._write(context, response_of(piece, answer, trail))

    @status.unary
    async def GetGeneration(  # noqa: N802
        self, request: gateway_pb2.GetGenerationRequest, context: Any
    ) -> gateway_pb2.GetGenerationResponse:
        return standing_of(await self._runs.standing(request.request_id, self._tenant(context)))

    @status.unary
    async def DeleteGeneration(  # noqa: N802
        self, request: gateway_pb2.DeleteGenerationRequest, context: Any
    ) -> gateway_pb2.DeleteGenerationResponse:
        await self._runs.delete(request.request_id, self._tenant(context))
        return gateway_pb2.DeleteGenerationResponse()

    async def _write(
        self, context: Any, response: gateway_pb2.GatewayServiceGenerateResponse
    ) -> None:
        """Raises StreamUnread: the client has no room for it. Cancelled: it is gone."""
        seconds = self._send_timeout
        try:
            async with asyncio.timeout(seconds):
                await context.write(response)
        except TimeoutError as failure:
            self._service.cut(response.request_id, seconds)
            raise StreamUnread(f"the stream was left unread for {seconds:g} s") from failure
        except grpc.aio.InternalError as failure:
            raise Cancelled("the client went away") from failure

    def _tenant(self, context: Any) -> str:
        """The name of the key that the interceptor let through."""
        if self._keys is None:
            return ""
        return self._keys.check(dict(context.invocation_metadata()).get("authorization"))

    async def _request(
        self, request: gateway_pb2.GatewayServiceGenerateRequest, terms: Terms
    ) -> GenerationRequest:
        if request.model:
            self._service.check_model(request.model)
        return GenerationRequest(
            request_id=request_name(request.request_id),
            operation="chat" if request.HasField("chat") else "text_completion",
            prompts=(await self._prompt(request, terms),),
            sampling=sampling_from_proto(request.sampling),
            max_tokens=request.stop.max_tokens or None,
            stop_token_ids=frozenset(request.stop.stop_token_ids),
            ignore_eos=request.stop.ignore_eos,
            stop_strings=tuple(request.stop_strings),
            n=request.n or 1,
            speculative=request.speculative if request.HasField("speculative") else None,
            logprobs=request.logprobs if request.HasField("logprobs") else None,
            terms=terms,
        )

    async def _prompt(
        self, request: gateway_pb2.GatewayServiceGenerateRequest, terms: Terms
    ) -> tuple[int, ...]:
        prompts = self._service.prompts
        kind = request.WhichOneof("prompt")
        if kind == "text":
            return await prompts.of_text(request.text, terms)
        if kind == "token_ids":
            return tuple(request.token_ids.ids)
        if kind == "chat" and request.chat.messages:
            return await prompts.of_chat(_turns(request.chat), terms)
        raise InvalidParameter("give a prompt: text, chat messages or token_ids", param="prompt")


def _terms(
    request: gateway_pb2.GatewayServiceGenerateRequest,
    tenant: str,
    arrived: float,
    call_seconds: float | None,
) -> Terms:
    """The request's own deadline or, where it is sooner, that of the call."""
    own = request.deadline_seconds if request.HasField("deadline_seconds") else None
    # A client may allow a call more time than any request can have.
    call = None if call_seconds is None else min(max(call_seconds, 1e-6), MAX_DEADLINE_SECONDS)
    return Terms(
        tenant=tenant,
        priority=request.priority,
        deadline=deadline(arrived, ("deadline_seconds", own), ("timeout", call)),
        cache_salt=request.cache_salt,
    )


def _turns(chat: gateway_pb2.Chat) -> list[dict[str, str]]:
    turns = []
    for place, message in enumerate(chat.messages):
        param = f"messages.{place}.role"
        try:
            role = known_role(message.role)
        except ValueError as failure:
            raise InvalidParameter(f"{param}: {failure}", param=param) from failure
        turns.append(turn(role, message.content))
    return turns


def _asked(request: gateway_pb2.GatewayServiceGenerateRequest, owner: str) -> Asked:
    last_event = request.resume_from
    return Asked(
        owner,
        # Nothing else of a request that resumes is looked at.
        b"" if last_event else digest_of_message(request),
        stream=True,
        key=checked_key(request.idempotency_key or None, "idempotency_key"),
        last_event=last_event,
        background=request.background and not last_event,
        param="resume_from",
    )


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Asks for `authorization: Bearer KEY` in the metadata, but for health and reflection."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_PREFIXES):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            self._keys.check(metadata.get("authorization"))
        except NotAuthenticated as failure:
            return _refusing(handler, failure)
        return handler


def _refusing(handler: Any, failure: NotAuthenticated) -> Any:
    """A handler of the same kind that ends the call with `failure`."""

    async def refuse(_: Any, context: Any) -> Any:
        await status.abort(context, failure)

    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(
            refuse, handler.request_deserializer, handler.response_serializer
        )
    return grpc.unary_unary_rpc_method_handler(
        refuse, handler.request_deserializer, handler.response_serializer
    )
