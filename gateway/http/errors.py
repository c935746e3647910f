"""Errors in OpenAI's shape."""

from __future__ import annotations

import math
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from slipstream.core.errors import (
    DeadlineExceeded,
    InternalError,
    Overloaded,
    QuotaReached,
    SessionConflict,
    SlipstreamError,
    Unavailable,
)

_RETRY_SECONDS = 1.0


def error_object(failure: SlipstreamError) -> dict[str, Any]:
    return {
        "error": {
            "message": failure.message,
            "type": failure.type,
            "param": failure.param,
            "code": failure.code,
        }
    }


def error_response(failure: SlipstreamError) -> Response:
    headers: dict[str, str] = {}
    if isinstance(failure, Overloaded | Unavailable):
        headers |= _retry_headers(failure.retry_after or _RETRY_SECONDS)
    if isinstance(failure, SessionConflict):
        # OpenAI's clients would try again at every 409, which helps only where a writer ends.
        retry = failure.retry_after
        headers |= {"X-Should-Retry": "false"} if retry is None else _retry_headers(retry)
    own_time = isinstance(failure, DeadlineExceeded) and failure.param is not None
    if own_time or isinstance(failure, QuotaReached):
        # The client's own time is over, or its room is full until it does something about that;
        # OpenAI's clients would try again at every 5xx and 429.
        headers["X-Should-Retry"] = "false"
    if failure.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(failure.http_status, error_object(failure), headers)


def _retry_headers(seconds: float) -> dict[str, str]:
    """Whole seconds, at least one, as HTTP has it; OpenAI's clients look for milliseconds first."""
    return {
        "Retry-After": str(max(1, math.ceil(seconds))),
        "Retry-After-Ms": str(math.ceil(1000 * seconds)),
    }


def _json(status: int, content: Any, headers: dict[str, str]) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Handlers for everything that a route can raise, and for what no route takes."""

    async def known(_: Request, failure: Exception) -> Response:
        assert isinstance(failure, SlipstreamError)
        return error_response(failure)

    async def routing(request: Request, failure: Exception) -> Response:
        assert isinstance(failure, HTTPException)
        where = f"{request.method} {request.url.path}"
        code = {404: "not_found", 405: "method_not_allowed"}.get(failure.status_code, "http_error")
        words = {404: f"there is no {where}", 405: f"{where}: method not allowed"}
        content = {
            "error": {
                "message": words.get(failure.status_code, str(failure.detail)),
                "type": "invalid_request_error",
                "param": None,
                "code": code,
            }
        }
        return _json(failure.status_code, content, dict(failure.headers or {}))

    async def unexpected(_: Request, failure: Exception) -> Response:
        # The details are in the log; they are not the client's business.
        return error_response(InternalError(f"internal error: {type(failure).__name__}"))

    app.add_exception_handler(SlipstreamError, known)
    app.add_exception_handler(HTTPException, routing)
    app.add_exception_handler(Exception, unexpected)
