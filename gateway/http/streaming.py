"""Answers, whole or as server-sent events."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.continuation import Piece
from gateway.http.disconnect import unless_disconnected
from gateway.http.errors import error_object
from gateway.http.listener import abort, given_up
from gateway.http.shapes import Envelope, Shape
from gateway.stats import Totals
from gateway.watchdog import Watchdog
from slipstream.core.errors import Cancelled, InternalError, SlipstreamError

log = logging.getLogger(__name__)


async def first_piece(pieces: AsyncGenerator[Piece, None]) -> Piece:
    """The first one, before which an error is still an HTTP status."""
    return await anext(pieces)


class EventStream(Response):
    """Server-sent events of one generation, in OpenAI's chunks.

    Args:
        first: the piece that has come already: until then an error is an HTTP status.
        pieces: the rest. Closed when the stream ends in whatever way.
        include_usage: whether the usage comes, in a chunk of its own at the end.
        send_timeout: seconds that the client may leave data unread; then it is cut.
        on_cut: called when it is, by us or by the kernel.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Piece,
        pieces: AsyncGenerator[Piece, None],
        shape: Shape,
        envelope: Envelope,
        totals: Totals,
        *,
        choices: int,
        include_usage: bool,
        send_timeout: float,
        on_cut: Callable[[], None],
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._pieces = pieces
        self._shape = shape
        self._envelope = envelope
        self._totals = totals
        self._open = choices
        self._include_usage = include_usage
        self._send_timeout = send_timeout
        self._on_cut = on_cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watchdog = Watchdog(partial(abort, scope), self._send_timeout)

        async def watched(message: Message) -> None:
            watchdog.wait(self._send_timeout)
            await send(message)
            watchdog.rest()

        try:
            await unless_disconnected(receive, self._run(watched))
        except (Cancelled, OSError) as failure:
            log.debug("stream ended early: %r", failure)
        finally:
            watchdog.close()
            if watchdog.barked or given_up(scope):
                self._on_cut()
            await self._pieces.aclose()

    async def _run(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        try:
            async for data in self._events():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except SlipstreamError as failure:
            await self._send_error(send, failure)
        except OSError:
            raise
        # The status line is out: the error can only be told in the stream.
        except Exception as failure:
            log.exception("unexpected failure in a stream")
            await self._send_error(send, InternalError(f"internal error: {type(failure).__name__}"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_error(self, send: Send, failure: SlipstreamError) -> None:
        data = _event(error_object(failure))
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        for index in range(self._open):
            opening = self._shape.opening(index)
            if opening is not None:
                yield self._chunk([opening])
        for data in self._of(self._first):
            yield data
        async for piece in self._pieces:
            for data in self._of(piece):
                yield data
        if self._include_usage:
            yield self._chunk([], usage=self._totals.usage(), **self._closing())
        yield b"data: [DONE]\n\n"

    def _of(self, piece: Piece) -> list[bytes]:
        """The chunks of one piece; none where all its text is held back."""
        chunks = []
        choice = self._shape.delta(piece)
        if piece.text or (choice["logprobs"] and piece.tokens):
            chunks.append(self._chunk([choice]))
        if piece.finish_reason is not None:
            self._open -= 1
            self._totals.add(piece)
            last = self._open == 0 and not self._include_usage
            extra = {"usage": self._totals.usage(), **self._closing()} if last else {}
            chunks.append(self._chunk([self._shape.ending(piece)], **extra))
        return chunks

    def _closing(self) -> dict[str, Any]:
        return self._envelope.closing(self._totals)

    def _chunk(self, choices: list[dict[str, Any]], **extra: Any) -> bytes:
        body = self._envelope.body(self._shape.chunk_kind, choices)
        if self._include_usage:
            body["usage"] = None
        body.update(extra)
        return _event(body)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def whole_body(
    pieces: AsyncGenerator[Piece, None],
    shape: Shape,
    envelope: Envelope,
    totals: Totals,
    choices: int,
) -> dict[str, Any]:
    """The answer to a request without streaming."""
    collected: list[list[Piece]] = [[] for _ in range(choices)]
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            collected[piece.index].append(piece)
            if piece.finish_reason is not None:
                totals.add(piece)
    written = [shape.choice(index, parts) for index, parts in enumerate(collected)]
    body = envelope.body(shape.kind, written)
    return {**body, "usage": totals.usage(), **envelope.closing(totals)}
