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
from gateway.runs.cursor import Cursor, Trail
from gateway.stats import Totals
from gateway.watchdog import Watchdog
from slipstream.core.errors import Cancelled, InternalError, SlipstreamError

log = logging.getLogger(__name__)


async def first_piece(pieces: AsyncGenerator[Piece, None]) -> Piece | None:
    """The first one, before which an error is still an HTTP status; None: there is none."""
    return await anext(pieces, None)


class EventStream(Response):
    """Server-sent events of one generation, in OpenAI's chunks.

    Args:
        first: the piece that has come already: until then an error is an HTTP status. None: there
            is none.
        pieces: the rest. Closed when the stream ends in whatever way.
        choices: of the request.
        include_usage: whether the usage comes, in a chunk of its own at the end.
        seen: what the client has from a stream before this one; None: nothing.
        trail: gives events their ids; None: they have none.
        send_timeout: seconds that the client may leave data unread; then it is cut.
        on_cut: called when it is, by us or by the kernel.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Piece | None,
        pieces: AsyncGenerator[Piece, None],
        shape: Shape,
        envelope: Envelope,
        totals: Totals,
        *,
        choices: int,
        include_usage: bool,
        send_timeout: float,
        on_cut: Callable[[], None],
        seen: Cursor | None = None,
        trail: Trail | None = None,
    ) -> None:
        resumable = "no" if trail is None else "yes"
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers | {"X-Slipstream-Resumable": resumable})
        del self.headers["content-length"]
        self._first = first
        self._pieces = pieces
        self._shape = shape
        self._envelope = envelope
        self._totals = totals
        self._choices = choices
        self._seen = seen
        self._trail = trail
        # Choices whose end the client has, but not we: the usage needs them all.
        self._past = set(seen.ended) if seen is not None else set()
        self._open = choices - len(self._past)
        self._last: Piece | None = None
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
        if self._seen is None:
            for data in self._openings():
                yield data
        if self._first is not None:
            for data in self._of(self._first):
                yield data
        async for piece in self._pieces:
            for data in self._of(piece):
                yield data
        if self._include_usage and not (self._seen is not None and self._seen.over):
            event_id = None if self._trail is None else self._trail.last
            yield self._chunk([], event_id, usage=self._totals.usage(), **self._closing())
        yield b"data: [DONE]\n\n"

    def _openings(self) -> list[bytes]:
        """What comes before any text. Only behind the last of them there is something to resume."""
        opened = [self._shape.opening(index) for index in range(self._choices)]
        chunks = [opening for opening in opened if opening is not None]
        last = len(chunks) - 1
        return [
            self._chunk([choice], self._id() if place == last else None)
            for place, choice in enumerate(chunks)
        ]

    def _of(self, piece: Piece) -> list[bytes]:
        """The chunks of one piece; none where all its text is held back, or the client has it."""
        chunks = []
        if self._trail is not None:
            self._trail.took(piece)
        if piece.finish_reason is not None:
            self._totals.add(piece)
        if piece.index in self._past:
            if piece.finish_reason is None:
                return []
            self._past.discard(piece.index)
            return self._endings(None)
        choice = self._shape.delta(piece)
        if piece.tokens and (piece.text or choice["logprobs"]):
            chunks.append(self._chunk([choice], self._id()))
        if piece.finish_reason is not None:
            chunks += self._endings(piece)
        return chunks

    def _endings(self, piece: Piece | None) -> list[bytes]:
        """The chunk that ends a choice. The last one waits until all is known that it tells."""
        if piece is not None:
            self._open -= 1
            if not self._open:
                self._last = piece
        if self._last is not None:
            if self._past:
                return []
            piece, self._last = self._last, None
            extra = {"usage": self._totals.usage(), **self._closing()}
            return [self._ending(piece, **({} if self._include_usage else extra))]
        return [] if piece is None else [self._ending(piece)]

    def _ending(self, piece: Piece, **extra: Any) -> bytes:
        if self._trail is not None:
            self._trail.ended(piece.index)
        return self._chunk([self._shape.ending(piece)], self._id(), **extra)

    def _id(self) -> str | None:
        return None if self._trail is None else self._trail.id

    def _closing(self) -> dict[str, Any]:
        return self._envelope.closing(self._totals)

    def _chunk(self, choices: list[dict[str, Any]], event_id: str | None, **extra: Any) -> bytes:
        body = self._envelope.body(self._shape.chunk_kind, choices)
        if self._include_usage:
            body["usage"] = None
        body.update(extra)
        return _event(body, event_id)


def _event(content: dict[str, Any], event_id: str | None = None) -> bytes:
    data = b"data: " + orjson.dumps(content) + b"\n\n"
    # Clients that read line by line find the data in the first one, as before.
    return data if event_id is None else data[:-1] + f"id: {event_id}\n\n".encode()


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
