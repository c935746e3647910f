"""Answers as HTTP responses: a body, or a stream of events."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response

from gateway.generation import GenerationService
from gateway.http.disconnect import unless_disconnected
from gateway.http.shapes import Envelope, Shape, shape_of
from gateway.http.streaming import EventStream, first_piece, whole_body
from gateway.runs.answer import Answer
from gateway.stats import Totals
from slipstream.core.errors import Cancelled


class AnswerWriter:
    """Writes answers in OpenAI's shapes.

    Args:
        service: where pieces come from.
        send_timeout: seconds that a client may leave a stream unread.
    """

    def __init__(self, service: GenerationService, send_timeout: float) -> None:
        self._service = service
        self._send_timeout = send_timeout

    async def write(self, http: Request, answer: Answer, *, stream: bool) -> Response:
        """The response; the answer ends with its client.

        Raises:
            SlipstreamError: there is none.
        """
        try:
            if stream:
                return await self._stream(http, answer)
            return json_response(await unless_disconnected(http.receive, self.body(answer)))
        except Cancelled:
            if await http.is_disconnected():
                return Response(status_code=499)
            raise

    async def body(self, answer: Answer) -> dict[str, Any]:
        """All of it."""
        totals = _totals(answer)
        parts = (answer.pieces, self._shape(answer), self._envelope(answer), totals)
        # The id may have been taken: that is known only now.
        return await whole_body(*parts, answer.choices) | {"id": answer.id}

    async def _stream(self, http: Request, answer: Answer) -> Response:
        first = await unless_disconnected(http.receive, first_piece(answer.pieces))
        try:
            # Only now: the record was put while the first token was waited for.
            trail = await answer.trail()
        except asyncio.CancelledError:
            await answer.pieces.aclose()
            raise
        return EventStream(
            first,
            answer.pieces,
            self._shape(answer),
            self._envelope(answer),
            _totals(answer),
            choices=answer.choices,
            include_usage=answer.include_usage,
            send_timeout=self._send_timeout,
            on_cut=lambda: self._service.cut(answer.id, self._send_timeout),
            seen=answer.cursor,
            trail=trail,
        )

    def _shape(self, answer: Answer) -> Shape:
        return shape_of(answer.request, self._service.tokenizer.token_bytes)

    def _envelope(self, answer: Answer) -> Envelope:
        return Envelope(answer.request, self._service.name, answer.id, answer.created)


def _totals(answer: Answer) -> Totals:
    return Totals(answer.request.prompt_tokens, answer.request.n)


def json_response(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
