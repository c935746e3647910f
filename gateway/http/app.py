"""The routes. Each one reads, checks, hands over to the core and writes what comes back."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.admission import Admission
from gateway.generation import GenerationService
from gateway.http import errors, openapi
from gateway.http.body import parse, read_body
from gateway.http.disconnect import unless_disconnected
from gateway.http.door import Door
from gateway.http.parsing import chat_generation, completion_generation, terms
from gateway.http.request_id import RequestIds
from gateway.http.schemas import ChatRequest, CompletionRequest
from gateway.http.shapes import ChatShape, CompletionShape, Envelope, Shape
from gateway.http.streaming import EventStream, first_piece, whole_body
from gateway.keys import KeyRing
from gateway.request import GenerationRequest
from gateway.stats import Totals
from gateway.terms import TIMEOUT_HEADER, Terms
from gateway.verifiers.served import VerifierState
from slipstream import __version__
from slipstream.core.errors import Cancelled

_Body = TypeVar("_Body", ChatRequest, CompletionRequest)


class Routes:
    """Handlers over one GenerationService.

    Args:
        service: the core.
        max_body_bytes: of a request.
        send_timeout: seconds that a client may leave a stream unread.
    """

    def __init__(
        self, service: GenerationService, max_body_bytes: int, send_timeout: float
    ) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._send_timeout = send_timeout
        self._started = int(time.time())

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        body = await self._body(request, ChatRequest)
        generation = await chat_generation(body, self._service.prompts, _terms(request, body))
        shape = ChatShape(self._service.tokenizer.token_bytes, logprobs=bool(body.logprobs))
        return await self._answer(request, body, generation, shape)

    async def completion(self, request: Request) -> Response:
        """Continue a prompt."""
        body = await self._body(request, CompletionRequest)
        generation = await completion_generation(body, self._service.prompts, _terms(request, body))
        with_logprobs = body.logprobs is not None
        shape = CompletionShape(self._service.tokenizer.token_bytes, logprobs=with_logprobs)
        return await self._answer(request, body, generation, shape)

    async def _body(self, request: Request, kind: type[_Body]) -> _Body:
        raw = await read_body(request.receive, request.headers, self._max_body_bytes)
        body = parse(raw, kind)
        self._service.check_model(body.model)
        return body

    async def _answer(
        self,
        http: Request,
        body: ChatRequest | CompletionRequest,
        generation: GenerationRequest,
        shape: Shape,
    ) -> Response:
        pieces = self._service.run(generation)
        envelope = Envelope(generation, self._service.name)
        totals = Totals(generation.prompt_tokens, generation.n)
        choices = len(generation.prompts) * generation.n
        try:
            if not body.stream:
                work = whole_body(pieces, shape, envelope, totals, choices)
                return _json(await unless_disconnected(http.receive, work))
            first = await unless_disconnected(http.receive, first_piece(pieces))
        except Cancelled:
            return Response(status_code=499)
        options = body.stream_options
        return EventStream(
            first,
            pieces,
            shape,
            envelope,
            totals,
            choices=choices,
            include_usage=bool(options and options.include_usage),
            send_timeout=self._send_timeout,
            on_cut=lambda: self._service.cut(generation.request_id, self._send_timeout),
        )

    async def models(self) -> Response:
        """List the models: there is one."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, model_id: str) -> Response:
        """Describe a model."""
        self._service.check_model(model_id)
        return _json(self._model())

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
        content = {
            "ready": not found.missing,
            "missing": found.missing,
            "drafter": {"connected": found.drafter_connected, "detail": found.drafter_detail},
            "verifiers": [_verifier(one) for one in found.verifiers],
        }
        return _json(content, status=503 if found.missing else 200)

    async def metrics(self) -> Response:
        """Metrics for Prometheus."""
        return Response(self._service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def _verifier(one: VerifierState) -> dict[str, Any]:
    return {
        "address": one.address,
        "state": one.state,
        "detail": one.detail,
        "zone": one.zone,
        "drafter": {"connected": one.drafter_connected, "detail": one.drafter_detail},
    }


def _terms(http: Request, body: ChatRequest | CompletionRequest) -> Terms:
    header = http.headers.get(TIMEOUT_HEADER)
    return terms(body, http.state.tenant, http.state.arrived, header)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def build(
    service: GenerationService,
    keys: KeyRing | None,
    admission: Admission,
    max_body_bytes: int,
    send_timeout: float,
) -> FastAPI:
    """The application; `keys` None leaves it open."""
    routes = Routes(service, max_body_bytes, send_timeout)
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
    app.add_api_route("/v1/models", routes.models, methods=get)
    app.add_api_route("/v1/models/{model_id:path}", routes.model, methods=get)
    app.add_api_route("/health", routes.health, methods=get)
    not_ready: dict[int | str, dict[str, Any]] = {
        503: {"description": "not now; `missing` says what is not there"}
    }
    app.add_api_route("/ready", routes.ready, methods=get, responses=not_ready)
    app.add_api_route("/metrics", routes.metrics, methods=get)
    errors.install(app)
    openapi.install(app, [ChatRequest, CompletionRequest])
    app.add_middleware(Door, keys=keys, admission=admission)
    # The last one is outermost: also who is not let in gets the request's name.
    app.add_middleware(RequestIds)
    return app
