"""Between front doors and sessions: a request that names one becomes its next turn.

The request is made whole before anything looks at it: what the session has, then what is new. So
its prompt, its checks and its tokens are those of a client that sent all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from gateway.continuation import Piece
from gateway.course import Course
from gateway.request import GenerationRequest
from gateway.runs.record import Asked
from gateway.sessions.claim import Opened
from gateway.sessions.sessions import Sessions
from gateway.sessions.turn import Turn
from slipstream.core.errors import ContextTooLong
from slipstream.wire.proto import gateway_pb2, types_pb2

_REASONS = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
}
_Body = TypeVar("_Body")
_Whole_co = TypeVar("_Whole_co", covariant=True)
_T = TypeVar("_T")


class AsTurn(Protocol[_Whole_co]):
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


class Conversation(Stateless[_Body]):
    """A request that is a session's next turn.

    Args:
        name: tells what the request is called now, where that may change while it runs.

    Attributes:
        body: the whole request.
        session_id, before: the session, and how many turns it has.
    """

    def __init__(
        self,
        body: _Body,
        sessions: Sessions,
        opened: Opened,
        turn: gateway_pb2.SessionTurn,
        name: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(body)
        self.session_id = opened.record.id
        self.before = opened.before
        self._sessions = sessions
        self._opened = opened
        self._turn = turn
        self._name = name

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
        """The turn without its output, as a GenerationRecord keeps it."""
        turn = gateway_pb2.SessionTurn()
        turn.CopyFrom(self._turn)
        turn.request_id, turn.seed = self._called(request), request.sampling.seed
        return turn

    def _called(self, request: GenerationRequest) -> str:
        return request.request_id if self._name is None else self._name()

    async def recorded(
        self,
        pieces: AsyncGenerator[Piece, None],
        request: GenerationRequest,
        course: Course,
        name: Callable[[], str] | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of the request's run; before the last one is given out, the turn is stored.

        The session is claimed before the run begins, and freed however it ends. One that fails, or
        is cancelled, leaves no trace.

        Args:
            pieces: not begun; closed with this generator.
            course: of that run; told who may have the history's keys and values.
            name: tells what the request is called now, where that may change while it runs.

        Raises:
            SessionConflict: another request has written the session, or is writing it.
            TooManySessions: the turn would make one more than may be.
            StoreUnavailable: the store does not answer, and the session has turns.
        """
        self._name = name or self._name
        async with (
            contextlib.aclosing(pieces),
            Turn(self._sessions.desk, self._opened, request.request_id) as turn,
        ):
            course.kv_holder = course.kv_holder or turn.record.kv_holder
            try:
                async for piece in pieces:
                    turn.rename(self._called(request))
                    turn.check()
                    if piece.finish_reason is None:
                        yield piece
                    else:
                        state = await self._commit(turn, piece, request, course.kv_holder)
                        yield replace(piece, session=state)
            except ContextTooLong as failure:
                raise self._too_long(failure, request.prompt_tokens) from failure

    async def store(self, piece: Piece, request: GenerationRequest) -> gateway_pb2.SessionState:
        """Stores the turn whose last piece this is. Raises as `recorded` does."""
        async with Turn(self._sessions.desk, self._opened, self._called(request)) as turn:
            return await self._commit(turn, piece, request, turn.record.kv_holder)

    async def _commit(
        self, turn: Turn, piece: Piece, request: GenerationRequest, kv_holder: str
    ) -> gateway_pb2.SessionState:
        done = self._done(piece, request)
        return await turn.commit(done, kind_of(done), kv_holder)

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


def kind_of(turn: gateway_pb2.SessionTurn) -> str:
    """Of session: "text", "chat" or "token_ids"."""
    return str(turn.WhichOneof("input"))
