"""The routes of kept generations: how they stand, the rest of a stream, their end."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from gateway.continuation import Piece
from gateway.http.answers import AnswerWriter, json_response
from gateway.http.errors import error_object
from gateway.runs.answer import Answer
from gateway.runs.cursor import HEADER
from gateway.runs.record import Asked
from gateway.runs.service import Runs, as_pieces
from gateway.runs.standing import Standing

_KIND = "generation"


class GenerationRoutes:
    """Handlers over the kept generations.

    Args:
        runs: them.
        writer: of their answers.
    """

    def __init__(self, runs: Runs, writer: AnswerWriter) -> None:
        self._runs = runs
        self._writer = writer

    async def fetch(self, request: Request, request_id: str) -> Response:
        """Tell how a generation stands: its result, what there is of it, or why it failed."""
        standing = await self._runs.standing(request_id, request.state.tenant)
        content: dict[str, Any] = {
            "id": request_id, "object": _KIND, "status": standing.state,
        }  # fmt: skip
        if standing.state == "completed":
            answer = Answer(
                standing.request, standing.record, as_pieces(standing.pieces), None, False
            )
            content["result"] = await self._writer.body(answer)
        elif standing.failure is not None:
            content |= error_object(standing.failure)
        else:
            content["partial"] = _texts(standing)
        return json_response(content)

    async def events(self, request: Request, request_id: str) -> Response:
        """Stream what comes behind the last event that was received, or everything."""
        last = request.headers.get(HEADER, "")
        asked = Asked(request.state.tenant, b"", stream=True, last_event=last)
        answer = await self._runs.resume(asked, request_id)
        return await self._writer.write(request, answer, stream=True)

    async def delete(self, request: Request, request_id: str) -> Response:
        """End a generation, wherever it runs, and forget it."""
        await self._runs.delete(request_id, request.state.tenant)
        return json_response({"id": request_id, "object": _KIND, "deleted": True})


def _texts(standing: Standing) -> list[dict[str, Any]]:
    """What is final of each choice so far."""
    texts: dict[int, list[Piece]] = {
        index: [] for index in range(len(standing.request.prompts) * standing.request.n)
    }
    for piece in standing.pieces:
        texts[piece.index].append(piece)
    return [
        {"index": index, "text": "".join(piece.text for piece in pieces)}
        for index, pieces in texts.items()
    ]


def install(app: FastAPI, routes: GenerationRoutes) -> None:
    """Adds the routes, with what they may answer beside 200."""
    absent: dict[int | str, dict[str, Any]] = {
        404: {"description": "there is no such generation, or not any more"},
        503: {"description": "the session store cannot be reached"},
    }
    path = "/v1/generations/{request_id}"
    last_event = {
        "parameters": [
            {
                "name": HEADER,
                "in": "header",
                "schema": {"type": "string"},
                "description": "id of the last event that was received; without it, all of them",
            }
        ]
    }
    app.add_api_route(path, routes.fetch, methods=["GET"], responses=absent)
    app.add_api_route(path, routes.delete, methods=["DELETE"], responses=absent)
    app.add_api_route(
        f"{path}/events",
        routes.events,
        methods=["GET"],
        responses={**absent, 200: {"content": {"text/event-stream": {}}}},
        openapi_extra=last_event,
    )
