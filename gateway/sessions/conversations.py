"""What front doors, and whoever runs their requests, know of sessions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TypeVar

from gateway.continuation import Piece
from gateway.course import Course
from gateway.request import GenerationRequest
from gateway.sessions.conversation import AsTurn, Conversation, Stateless, kind_of
from gateway.sessions.sessions import Sessions
from slipstream.core.errors import (
    InvalidParameter,
    InvalidRequest,
    SessionConflict,
    StoreUnavailable,
)
from slipstream.wire.proto import gateway_pb2, store_pb2

_Body = TypeVar("_Body")
Run = Callable[[GenerationRequest, Course], AsyncGenerator[Piece, None]]
Generate = Callable[
    [GenerationRequest, Course, store_pb2.GenerationRecord], AsyncGenerator[Piece, None]
]


class Conversations:
    """What front doors ask for. One for the process.

    Args:
        sessions: None where this gateway keeps none.
    """

    def __init__(self, sessions: Sessions | None) -> None:
        self._sessions = sessions

    @property
    def sessions(self) -> Sessions:
        """Raises InvalidRequest: there are none."""
        if self._sessions is None:
            raise InvalidRequest(
                "this gateway keeps no sessions: it was started with --session-store off",
                param="session_id",
            )
        return self._sessions

    async def of(self, asked: AsTurn[_Body], body: _Body, owner: str) -> Stateless[_Body]:
        """The request as a turn of the session that it names, or as it is.

        Args:
            body: the request.
            owner: name of the API key.

        Raises:
            InvalidRequest: it cannot be a turn, or not of this session, or there is no room.
            SessionNotFound, SessionConflict, StoreUnavailable: as `Sessions.open`.
        """
        if not asked.session_id:
            if asked.session_turn is not None:
                raise InvalidParameter("session_turn needs session_id", param="session_turn")
            return Stateless(body)
        turn = asked.turn()
        opened = await self.sessions.open(owner, asked.session_id, asked.session_turn)
        record = opened.record
        if record.kind and record.kind != kind_of(turn):
            raise InvalidParameter(
                f"session '{record.id}' is of kind {record.kind}, since it began so; this turn is"
                f" of kind {kind_of(turn)}",
                param="session_id",
            )
        self._check_size(record, turn)
        return Conversation(asked.whole(record.turns), self.sessions, opened, turn)

    def _check_size(self, record: store_pb2.SessionRecord, turn: gateway_pb2.SessionTurn) -> None:
        size, most = record.ByteSize() + turn.ByteSize(), self.sessions.limits.max_bytes
        if size > most:
            raise InvalidRequest(
                f"session '{record.id}' would have {size} bytes with this turn, beyond the limit of"
                f" {most} (--max-session-bytes): fork it at an earlier turn, or begin a new one",
                param="session_id",
            )

    def around(self, run: Run) -> Generate:
        """`run`, for requests that have a record, and with it the turn that they become.

        Fresh or taken up again, here or after another gateway's end: the turn claims its session,
        and is stored once, before the last piece is given out. Raises, beside what `run` does,
        SessionConflict: the session has gone on without it; StoreUnavailable: it has turns before,
        and the store does not answer.
        """

        def generate(
            request: GenerationRequest, course: Course, record: store_pb2.GenerationRecord
        ) -> AsyncGenerator[Piece, None]:
            pieces = run(request, course)
            if not record.session_id:
                return pieces
            return self._continued(pieces, request, course, record)

        return generate

    async def _continued(
        self,
        pieces: AsyncGenerator[Piece, None],
        request: GenerationRequest,
        course: Course,
        record: store_pb2.GenerationRecord,
    ) -> AsyncGenerator[Piece, None]:
        async with contextlib.aclosing(pieces):
            conversation = await self._resumed(record)
            recorded = conversation.recorded(pieces, request, course)
            async with contextlib.aclosing(recorded):
                async for piece in recorded:
                    yield piece

    async def _resumed(self, record: store_pb2.GenerationRecord) -> Conversation[None]:
        opened = await self.sessions.resume(
            record.owner, record.session_id, record.session_turn, record.request_id
        )
        return Conversation(None, self.sessions, opened, record.turn, lambda: record.request_id)

    async def settled(
        self, record: store_pb2.GenerationRecord, request: GenerationRequest, piece: Piece
    ) -> Piece:
        """The last piece of a generation that had ended already, with what became of its turn.

        It is stored where the gateway that ran it did not come to that. Where it cannot be, the
        answer is there nevertheless, and says so.
        """
        if not record.session_id or piece.finish_reason is None:
            return piece
        try:
            conversation = await self._resumed(record)
            state = await conversation.store(piece, request)
        except (SessionConflict, StoreUnavailable) as failure:
            turns = record.session_turn + 1
            state = gateway_pb2.SessionState(
                id=record.session_id, turns=turns, stored=False, detail=failure.message
            )
        return replace(piece, session=state)
