"""/v1/sessions: made, read, listed, deleted, forked."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.http import openapi
from gateway.http.body import parse, read_body
from gateway.sessions import Conversations
from gateway.sessions.sessions import DEFAULT_PAGE, MAX_PAGE
from slipstream.core.errors import InvalidParameter
from slipstream.wire.proto import gateway_pb2, types_pb2

_REASONS = {types_pb2.FINISH_REASON_STOP: "stop", types_pb2.FINISH_REASON_LENGTH: "length"}
_ID_HELP = "1 to 128 of: letters, digits, '.', '_', ':', '-'; a random one where it is left out"
_PAGE: dict[str, Any] = {
    "parameters": [
        {
            "name": "after",
            "in": "query",
            "description": "those behind this id",
            "schema": {"type": "string"},
        },
        {
            "name": "limit",
            "in": "query",
            "schema": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_PAGE,
                "default": DEFAULT_PAGE,
            },
        },
    ]
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class CreateSession(_Strict):
    """POST /v1/sessions. The body may be left out."""

    id: str | None = Field(None, min_length=1, description=_ID_HELP)
    ttl: float | None = Field(
        None, description="seconds for which it is kept after its last turn; null: the default"
    )


class ForkSession(_Strict):
    """POST /v1/sessions/{id}/fork. The body may be left out."""

    turns: int | None = Field(None, description="how many turns the new one has; null: all")
    id: str | None = Field(None, min_length=1, description=_ID_HELP)


BODIES = (CreateSession, ForkSession)


class SessionRoutes:
    """Handlers; a session is its API key's, and nobody else learns of it."""

    def __init__(self, conversations: Conversations, max_body_bytes: int) -> None:
        self._conversations = conversations
        self._max_body_bytes = max_body_bytes

    async def create(self, request: Request) -> Response:
        """Begin a session."""
        raw = await read_body(request.receive, request.headers, self._max_body_bytes)
        body = parse(raw or b"{}", CreateSession)
        sessions = self._conversations.sessions
        return _json(_shape(await sessions.create(_owner(request), body.id or "", body.ttl)))

    async def list(self, request: Request) -> Response:
        """List sessions by id, without their turns."""
        after, given = request.query_params.get("after", ""), request.query_params.get("limit")
        if given is not None and not (given.isascii() and given.isdecimal() and len(given) < 9):
            raise InvalidParameter(f"limit must be in [1, {MAX_PAGE}]", param="limit")
        limit = DEFAULT_PAGE if given is None else int(given)
        found, more = await self._conversations.sessions.list(_owner(request), after, limit)
        data = [_shape(session, turns=False) for session in found]
        return _json({"object": "list", "data": data, "has_more": more})

    async def get(self, request: Request, session_id: str) -> Response:
        """Read a session with its turns."""
        found = await self._conversations.sessions.get(_owner(request), session_id)
        return _json(_shape(found))

    async def delete(self, request: Request, session_id: str) -> Response:
        """Forget a session."""
        await self._conversations.sessions.delete(_owner(request), session_id)
        return _json({"id": session_id, "object": "session.deleted", "deleted": True})

    async def fork(self, request: Request, session_id: str) -> Response:
        """Begin a session with the first turns of another one."""
        raw = await read_body(request.receive, request.headers, self._max_body_bytes)
        body = parse(raw or b"{}", ForkSession)
        sessions = self._conversations.sessions
        made = await sessions.fork(_owner(request), session_id, body.turns, body.id or "")
        return _json(_shape(made))


def _owner(request: Request) -> str:
    return str(request.state.tenant)


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def _shape(session: gateway_pb2.Session, *, turns: bool = True) -> dict[str, Any]:
    shape = {
        "id": session.id,
        "object": "session",
        "created": session.created_unix,
        "expires": session.expires_unix,
        "kind": session.kind or None,
        "num_turns": session.num_turns,
    }
    return {**shape, "turns": [_turn(turn) for turn in session.turns]} if turns else shape


def _turn(turn: gateway_pb2.SessionTurn) -> dict[str, Any]:
    usage = turn.usage
    given: Any = turn.text
    output: Any = turn.output_text
    if turn.HasField("chat"):
        given = [{"role": each.role, "content": each.content} for each in turn.chat.messages]
    elif turn.HasField("token_ids"):
        given, output = list(turn.token_ids.ids), list(turn.output_token_ids)
    return {
        "request_id": turn.request_id,
        "input": given,
        "output": output,
        "finish_reason": _REASONS.get(turn.finish_reason),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        },
        "seed": turn.seed,
    }


def add_routes(app: FastAPI, conversations: Conversations, max_body_bytes: int) -> None:
    routes, one = SessionRoutes(conversations, max_body_bytes), "/v1/sessions/{session_id}"
    app.add_api_route(
        "/v1/sessions",
        routes.create,
        methods=["POST"],
        openapi_extra=openapi.body(CreateSession, required=False),
    )
    app.add_api_route("/v1/sessions", routes.list, methods=["GET"], openapi_extra=_PAGE)
    app.add_api_route(one, routes.get, methods=["GET"])
    app.add_api_route(one, routes.delete, methods=["DELETE"])
    app.add_api_route(
        f"{one}/fork",
        routes.fork,
        methods=["POST"],
        openapi_extra=openapi.body(ForkSession, required=False),
    )
