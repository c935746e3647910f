"""The gRPC front door: GatewayService over the generation core."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from gateway.admission import Admission
from gateway.chat import known_role, turn
from gateway.continuation import Piece
from gateway.course import Course
from gateway.generation import GenerationService
from gateway.grpc_sessions import GrpcTurn, SessionRpcs
from gateway.keys import KeyRing
from gateway.request import GenerationRequest
from gateway.request_id import request_name
from gateway.sessions import Conversations
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
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.telemetry import tracing

SERVICE = "slipstream.v1.GatewayService"
_OPEN_PREFIXES = ("/grpc.health.v1.Health/", "/grpc.reflection.")
_REASONS = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
}


class GatewayServicer(SessionRpcs, gateway_pb2_grpc.GatewayServiceServicer):
    """Translates requests and pieces; decides nothing itself. `keys` None leaves it open."""

    def __init__(
        self,
        service: GenerationService,
        keys: KeyRing | None,
        admission: Admission,
        max_body_bytes: int,
        send_timeout: float,
        conversations: Conversations,
    ) -> None:
        super().__init__(conversations)
        self._service = service
        self._keys = keys
        self._admission = admission
        self._max_body_bytes = max_body_bytes
        self._send_timeout = send_timeout

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
            terms = _terms(request, tenant, arrived, context.time_remaining())
            turn = await self._conversations.of(GrpcTurn(request), request, tenant)
            generation = await turn.prepared(self._request(turn.body, terms))
            length, course = len(generation.prompts[0]), Course()
            run = turn.recorded(self._service.run(generation, course), generation, course)
            async with contextlib.aclosing(run) as pieces:
                async for piece in pieces:
                    if piece.text or piece.tokens or piece.finish_reason:
                        await self._write(context, _response(piece, generation, length))

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


def _response(
    piece: Piece, request: GenerationRequest, prompt_tokens: int
) -> gateway_pb2.GatewayServiceGenerateResponse:
    response = gateway_pb2.GatewayServiceGenerateResponse(
        request_id=request.request_id, index=piece.index, text=piece.text, tokens=piece.tokens
    )
    if piece.finish_reason is not None:
        response.finish_reason = _REASONS[piece.finish_reason]
        response.usage.prompt_tokens = prompt_tokens
        response.usage.completion_tokens = piece.completion_tokens
        response.usage.cached_prompt_tokens = piece.cached_tokens
        response.seed = request.choice_seed(piece.index)
        if piece.stats is not None:
            response.stats.CopyFrom(piece.stats)
        if piece.session is not None:
            response.session.CopyFrom(piece.session)
    return response


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
