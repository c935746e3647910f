"""Sessions at the gRPC front door: their RPCs, and requests that are their turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.chat import known_role
from gateway.sessions import Conversations
from gateway.sessions.sessions import DEFAULT_PAGE
from slipstream.core.errors import InvalidParameter
from slipstream.wire import status
from slipstream.wire.proto import gateway_pb2


class GrpcTurn:
    """A Generate request; its prompt is what is new."""

    def __init__(self, request: gateway_pb2.GatewayServiceGenerateRequest) -> None:
        self._request = request
        self.session_id = request.session_id
        self.session_turn = request.session_turn if request.HasField("session_turn") else None

    def turn(self) -> gateway_pb2.SessionTurn:
        request = self._request
        if request.n > 1:
            raise InvalidParameter(
                f"a session's turn has one answer: n must be 1, got {request.n}", param="n"
            )
        kind = request.WhichOneof("prompt")
        if kind == "text":
            return gateway_pb2.SessionTurn(text=request.text)
        if kind == "token_ids":
            return gateway_pb2.SessionTurn(token_ids=request.token_ids)
        if kind != "chat" or not request.chat.messages:
            raise InvalidParameter(
                "give a prompt: text, chat messages or token_ids", param="prompt"
            )
        for place, message in enumerate(request.chat.messages):
            param = f"messages.{place}.role"
            try:
                known_role(message.role)
            except ValueError as failure:
                raise InvalidParameter(f"{param}: {failure}", param=param) from failure
        return gateway_pb2.SessionTurn(chat=request.chat)

    def whole(
        self, turns: Iterable[gateway_pb2.SessionTurn]
    ) -> gateway_pb2.GatewayServiceGenerateRequest:
        made = gateway_pb2.GatewayServiceGenerateRequest()
        made.CopyFrom(self._request)
        kind = made.WhichOneof("prompt")
        if kind == "text":
            texts = [turn.text + turn.output_text for turn in turns]
            made.text = "".join([*texts, made.text])
        elif kind == "token_ids":
            del made.token_ids.ids[:]
            for turn in turns:
                made.token_ids.ids.extend(turn.token_ids.ids)
                made.token_ids.ids.extend(turn.output_token_ids)
            made.token_ids.ids.extend(self._request.token_ids.ids)
        else:
            del made.chat.messages[:]
            for turn in turns:
                made.chat.messages.extend(turn.chat.messages)
                made.chat.messages.add(role="assistant", content=turn.output_text)
            made.chat.messages.extend(self._request.chat.messages)
        return made


class SessionRpcs:
    """The RPCs on sessions; part of the servicer, which knows the caller by `_tenant`."""

    _tenant: Any

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations

    @status.unary
    async def CreateSession(  # noqa: N802
        self, request: gateway_pb2.CreateSessionRequest, context: Any
    ) -> gateway_pb2.CreateSessionResponse:
        ttl = request.ttl_seconds if request.HasField("ttl_seconds") else None
        owner = self._tenant(context)
        session = await self._conversations.sessions.create(owner, request.id, ttl)
        return gateway_pb2.CreateSessionResponse(session=session)

    @status.unary
    async def GetSession(  # noqa: N802
        self, request: gateway_pb2.GetSessionRequest, context: Any
    ) -> gateway_pb2.GetSessionResponse:
        session = await self._conversations.sessions.get(self._tenant(context), request.id)
        return gateway_pb2.GetSessionResponse(session=session)

    @status.unary
    async def ListSessions(  # noqa: N802
        self, request: gateway_pb2.ListSessionsRequest, context: Any
    ) -> gateway_pb2.ListSessionsResponse:
        sessions, owner = self._conversations.sessions, self._tenant(context)
        found, more = await sessions.list(owner, request.after, request.limit or DEFAULT_PAGE)
        return gateway_pb2.ListSessionsResponse(sessions=found, has_more=more)

    @status.unary
    async def DeleteSession(  # noqa: N802
        self, request: gateway_pb2.DeleteSessionRequest, context: Any
    ) -> gateway_pb2.DeleteSessionResponse:
        await self._conversations.sessions.delete(self._tenant(context), request.id)
        return gateway_pb2.DeleteSessionResponse()

    @status.unary
    async def ForkSession(  # noqa: N802
        self, request: gateway_pb2.ForkSessionRequest, context: Any
    ) -> gateway_pb2.ForkSessionResponse:
        turns = request.turns if request.HasField("turns") else None
        sessions, owner = self._conversations.sessions, self._tenant(context)
        session = await sessions.fork(owner, request.id, turns, request.new_id)
        return gateway_pb2.ForkSessionResponse(session=session)
