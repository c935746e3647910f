"""Between front doors and sessions: a request that names one becomes its next turn.

The request is made whole before anything looks at it: what the session has, then what is new. So
its prompt, its checks and its tokens are those of a client that sent all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from gateway.continuation import Piece
from gateway.course import Course
from gateway.request import GenerationRequest
from gateway.runs.record import Asked
from gateway.sessions.claim import Opened
from gateway.sessions.sessions import Sessions
from gateway.sessions.turn import Turn
from slipstream.core.errors import (
    ContextTooLong,
    InvalidParameter,
    InvalidRequest,
    SessionNotFound,
)
from slipstream.wire.proto import gateway_pb2, store_pb2, types_pb2

_REASONS = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
}
_Body = TypeVar("_Body")
_Whole_co = TypeVar("_Whole_co", covariant=True)
_T = TypeVar("_T")


class TurnRequest(Protocol[_Whole_co]):
    """A request of one front door, as sessions see it."""

    @property
    def session_id(self) -> str:
        """Empty where it names none."""

    @property
    def session_turn(self) -> int | None: ...

    def turn(self) -> gateway_pb2.SessionTurn:
        """What is new, as the session keeps it. Raises InvalidRequest: it cannot be a turn."""

    def whole(self, turns: Any) -> _Whole_co:
        """The request with these turns, a sequence of SessionTurn, before what is new."""


class Stateless(Generic[_Body]):
    """A request without a session."""

    def __init__(self, body: _Body) -> None:
        self.body = body
        self.session_id = ""
        self.before = 0

    async def prepared(self, work: Awaitable[_T]) -> _T:
        return await work

    def asked(self, asked: Asked, request: GenerationRequest) -> Asked:  # noqa: ARG002
        """How the request, which is whole by now, is run and kept."""
        return asked

    def recorded(
        self,
        pieces: AsyncGenerator[Piece, None],
        request: GenerationRequest,  # noqa: ARG002
        course: Course,  # noqa: ARG002
    ) -> AsyncGenerator[Piece, None]:
        return pieces


class Conversation(Stateless[_Body]):
    """A request that is a session's next turn.

    Attributes:
        body: the whole request.
        session_id, before: the session, and how many turns it has.
    """

    def __init__(
        self, body: _Body, sessions: Sessions, opened: Opened, turn: gateway_pb2.SessionTurn
    ) -> None:
        super().__init__(body)
        self.session_id = opened.record.id
        self.before = opened.before
        self._sessions = sessions
        self._opened = opened
        self._turn = turn

    async def prepared(self, work: Awaitable[_T]) -> _T:
        """What `work` makes of the body. Its ContextTooLong says what the history has to do with
        it."""
        try:
            return await work
        except ContextTooLong as failure:
            raise self._too_long(failure, None) from failure

    def asked(self, asked: Asked, request: GenerationRequest) -> Asked:
        return replace(
            asked,
            session_id=self.session_id,
            session_turn=self.before,
            turn=self._begun(request),
            recorded=self.recorded,
        )

    def _begun(self, request: GenerationRequest) -> gateway_pb2.SessionTurn:
        """The turn without its output, as a GenerationRecord keeps it. Its name stays, also where
        the answer gets another, since its own is taken."""
        turn = gateway_pb2.SessionTurn()
        turn.CopyFrom(self._turn)
        turn.request_id = self._turn.request_id or request.request_id
        turn.seed = request.sampling.seed
        return turn

    async def recorded(
        self, pieces: AsyncGenerator[Piece, None], request: GenerationRequest, course: Course
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of the request's run; before the last one is given out, the turn is stored.

        The session is claimed before the run begins, and freed however it ends. One that fails, or
        is cancelled, leaves no trace.

        Args:
            pieces: not begun; closed with this generator.
            course: of that run; told who may have the history's keys and values.

        Raises:
            SessionConflict: another request has written the session, or is writing it.
            StoreUnavailable: the store does not answer, and the session has turns.
        """
        async with (
            contextlib.aclosing(pieces),
            Turn(self._sessions.desk, self._opened, self._begun(request).request_id) as turn,
        ):
            course.kv_holder = course.kv_holder or turn.record.kv_holder
            try:
                async for piece in pieces:
                    turn.check()
                    if piece.finish_reason is None:
                        yield piece
                    else:
                        done = self._done(piece, request)
                        state = await turn.commit(done, _kind(done), course.kv_holder)
                        yield replace(piece, session=state)
            except ContextTooLong as failure:
                raise self._too_long(failure, request.prompt_tokens) from failure

    def _done(self, piece: Piece, request: GenerationRequest) -> gateway_pb2.SessionTurn:
        assert piece.output is not None
        assert piece.finish_reason is not None
        turn = self._begun(request)
        turn.output_text = piece.output.text
        if turn.HasField("token_ids"):
            turn.output_token_ids.extend(piece.output.token_ids)
        turn.finish_reason = _REASONS[piece.finish_reason]
        turn.usage.prompt_tokens = request.prompt_tokens
        turn.usage.completion_tokens = piece.completion_tokens
        turn.usage.cached_prompt_tokens = piece.cached_tokens
        return turn

    def _too_long(self, failure: ContextTooLong, prompt_tokens: int | None) -> ContextTooLong:
        history = self._opened.record.prefix.length
        if not history:
            return failure
        new = "" if prompt_tokens is None else f" and about {max(0, prompt_tokens - history)} new"
        return ContextTooLong(
            f"{failure.message}; of it, {history} tokens are the history of session"
            f" '{self.session_id}'{new}: fork it at an earlier turn, or begin a new one",
            param=failure.param,
        )


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

    async def of(self, asked: TurnRequest[_Body], body: _Body, owner: str) -> Stateless[_Body]:
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
        if record.kind and record.kind != _kind(turn):
            raise InvalidParameter(
                f"session '{record.id}' is of kind {record.kind}, since it began so; this turn is"
                f" of kind {_kind(turn)}",
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

    async def resumed(self, record: store_pb2.GenerationRecord) -> Stateless[None]:
        """The turn of a request that is taken up again, maybe from a gateway that is gone.

        Its `recorded` wants the pieces of a run with the prompt of the record.

        Raises:
            SessionConflict: the session has gone on without it.
            StoreUnavailable: the store does not answer.
        """
        if not record.session_id:
            return Stateless(None)
        opened = await self.sessions.resume(
            record.owner, record.session_id, record.session_turn, record.turn.request_id
        )
        return Conversation(None, self.sessions, opened, record.turn)

    async def state(self, record: store_pb2.GenerationRecord) -> gateway_pb2.SessionState:
        """Whether the turn of a request that has ended is in its session. Raises
        StoreUnavailable."""
        before = record.session_turn
        turns: Sequence[gateway_pb2.SessionTurn] = ()
        with contextlib.suppress(SessionNotFound):
            turns = (await self.sessions.get(record.owner, record.session_id)).turns
        stored = len(turns) > before and turns[before].request_id == record.turn.request_id
        return gateway_pb2.SessionState(
            id=record.session_id,
            turns=before + 1,
            stored=stored,
            detail="" if stored else "the turn is not in the session",
        )


def _kind(turn: gateway_pb2.SessionTurn) -> str:
    return str(turn.WhichOneof("input"))
