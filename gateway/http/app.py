"""The routes. Each one reads, checks, hands over to the core and writes what comes back."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.http import errors, generations, openapi, sessions
from gateway.http.answers import AnswerWriter, json_response
from gateway.http.body import parse, read_body
from gateway.http.door import Door
from gateway.http.generations import GenerationRoutes
from gateway.http.parsing import asked_of, chat_generation, completion_generation, terms
from gateway.http.request_id import RequestIds
from gateway.http.schemas import ChatRequest, CompletionRequest
from gateway.http.turns import ChatTurn, CompletionTurn
from gateway.parts import Parts
from gateway.request import GenerationRequest
from gateway.runs.background import behind_others
from gateway.runs.record import Asked
from gateway.terms import TIMEOUT_HEADER, Terms
from gateway.verifiers.served import VerifierState
from slipstream import __version__
from slipstream.discovery.endpoints import Discovery

_Body = TypeVar("_Body", ChatRequest, CompletionRequest)
# Makes a request that was not made before whole, and says how it is run.
New = Callable[[Asked], Awaitable[tuple[GenerationRequest, Asked]]]


class Routes:
    """Handlers over the gateway's parts."""

    def __init__(self, parts: Parts, writer: AnswerWriter) -> None:
        self._service = parts.service
        self._kept = parts.kept
        self._admission = parts.admission
        self._runs, self._background = parts.kept.runs, parts.kept.background
        self._conversations = parts.kept.conversations
        self._writer = writer
        self._max_body_bytes = parts.max_body_bytes
        self._started = int(time.time())

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        body = await self._body(request, ChatRequest)

        async def new(asked: Asked) -> tuple[GenerationRequest, Asked]:
            turn = await self._conversations.of(ChatTurn(body), body, asked.owner)
            work = chat_generation(turn.body, self._service.prompts, _terms(request, body))
            generation = await turn.prepared(work)
            return generation, turn.asked(asked, generation)

        return await self._respond(request, body, new, "chat")

    async def completion(self, request: Request) -> Response:
        """Continue a prompt."""
        body = await self._body(request, CompletionRequest)

        async def new(asked: Asked) -> tuple[GenerationRequest, Asked]:
            turn = await self._conversations.of(CompletionTurn(body), body, asked.owner)
            work = completion_generation(turn.body, self._service.prompts, _terms(request, body))
            generation = await turn.prepared(work)
            return generation, turn.asked(asked, generation)

        return await self._respond(request, body, new, "text_completion")

    async def _body(self, request: Request, kind: type[_Body]) -> _Body:
        raw = await read_body(request.receive, request.headers, self._max_body_bytes)
        body = parse(raw, kind)
        self._service.check_model(body.model)
        return body

    async def _respond(
        self,
        http: Request,
        body: ChatRequest | CompletionRequest,
        new: New,
        operation: str,
    ) -> Response:
        """To a request that is new, or was made before."""
        asked = asked_of(http.headers, body, operation, http.state.tenant)
        if asked.background:
            return await self._in_background(asked, body, new)
        answer = await self._runs.known(asked)
        if answer is None:
            answer = await self._runs.begin(*await new(asked))
        return await self._writer.write(http, answer, stream=asked.stream)

    async def _in_background(
        self, asked: Asked, body: ChatRequest | CompletionRequest, new: New
    ) -> Response:
        name = await self._background.found(asked)
        if not name:
            request, asked = await new(asked)
            patient = behind_others(request) if body.priority is None else request
            name = await self._background.begin(patient, asked)
        content = {"id": name, "object": "generation", "status": "in_progress"}
        return json_response(content, status=202)

    async def models(self) -> Response:
        """List the models: there is one."""
        return json_response({"object": "list", "data": [self._model()]})

    async def model(self, model_id: str) -> Response:
        """Describe a model."""
        self._service.check_model(model_id)
        return json_response(self._model())

    def _model(self) -> dict[str, Any]:
        known = self._service.pool.known_model
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._started,
            "owned_by": "slipstream",
            "max_model_len": known.context_length if known else None,
        }

    async def health(self) -> Response:
        """Whether this process is alive."""
        return Response()

    async def ready(self) -> Response:
        """Whether requests can be served, and if not, what is missing."""
        found = await self._service.pool.readiness()
        missing = ("stopping", *found.missing) if self._admission.stopping else found.missing
        content = {
            "ready": not missing,
            "missing": missing,
            "drafter": {"connected": found.drafter_connected, "detail": found.drafter_detail},
            "verifiers": [_verifier(one) for one in found.verifiers],
            "discovery": [_discovery(one) for one in found.discovery],
            # What is served without: requests are, where a store that should be there is not.
            "store": self._kept.standing(),
        }
        return json_response(content, status=503 if missing else 200)

    async def metrics(self) -> Response:
        """Metrics for Prometheus."""
        return Response(self._service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _verifier(one: VerifierState) -> dict[str, Any]:
    return {
        "address": one.address,
        "state": one.state,
        "detail": one.detail,
        "zone": one.zone,
        "exactness": one.exactness,
        "round_trip_seconds": one.round_trip_seconds,
        "drafter": {"connected": one.drafter_connected, "detail": one.drafter_detail},
    }


def _discovery(one: Discovery) -> dict[str, Any]:
    return {
        "entry": one.entry,
        "state": "degraded" if one.detail else "ok",
        "source": one.source,
        "summary": one.short,
        "detail": one.detail,
        "endpoints": {"ready": one.ready, "draining": one.draining},
    }


def _terms(http: Request, body: ChatRequest | CompletionRequest) -> Terms:
    header = http.headers.get(TIMEOUT_HEADER)
    return terms(body, http.state.tenant, http.state.arrived, header)


def build(parts: Parts) -> FastAPI:
    """The application."""
    writer = AnswerWriter(parts.service, parts.send_timeout)
    routes = Routes(parts, writer)
    app = FastAPI(title="Slipstream", version=__version__, redirect_slashes=False)
    post, get = ["POST"], ["GET"]
    app.add_api_route(
        "/v1/chat/completions",
        routes.chat,
        methods=post,
        openapi_extra=openapi.body(ChatRequest),
    )
    app.add_api_route(
        "/v1/completions",
        routes.completion,
        methods=post,
        openapi_extra=openapi.body(CompletionRequest),
    )
    generations.install(app, GenerationRoutes(parts.kept.runs, writer))
    app.add_api_route("/v1/models", routes.models, methods=get)
    app.add_api_route("/v1/models/{model_id:path}", routes.model, methods=get)
    app.add_api_route("/health", routes.health, methods=get)
    not_ready: dict[int | str, dict[str, Any]] = {
        503: {"description": "not now; `missing` says what is not there"}
    }
    app.add_api_route("/ready", routes.ready, methods=get, responses=not_ready)
    app.add_api_route("/metrics", routes.metrics, methods=get)
    sessions.add_routes(app, parts.kept.conversations, parts.max_body_bytes)
    errors.install(app)
    openapi.install(app, [ChatRequest, CompletionRequest, *sessions.BODIES])
    app.add_middleware(Door, keys=parts.keys, admission=parts.admission)
    # The last one is outermost: also who is not let in gets the request's name.
    app.add_middleware(RequestIds)
    return app
