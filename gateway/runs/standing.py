"""How far a kept generation has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.continuation import Piece
from gateway.request import GenerationRequest
from gateway.runs.keeper import Keeper
from gateway.runs.record import Record, request_of
from slipstream.core.errors import SlipstreamError

State = Literal["in_progress", "completed", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a generation has come.

    Attributes:
        state: "interrupted" where nobody runs it, and somebody who asks for the rest must.
        pieces: what there is.
        failure: why it failed.
    """

    record: Record
    request: GenerationRequest
    state: State
    pieces: tuple[Piece, ...]
    failure: SlipstreamError | None


async def standing_of(keeper: Keeper, record: Record) -> Standing:
    """Of a session's turn that has ended it says what became of that, and sees to it.

    Raises:
        ModelMismatch: it is of another model. Unavailable, StoreUnavailable: nobody can tell.
    """
    request = request_of(record)
    failure = await keeper.records.failure(record.request_id)
    follower = keeper.follower(record, request)
    pieces = tuple([await keeper.told(piece, record, request) async for piece in follower.now()])
    state: State = "interrupted"
    if follower.over:
        state = "completed"
    elif failure is not None:
        state = "failed"
    elif record.background or follower.alive:
        state = "in_progress"
    return Standing(record, request, state, pieces, failure)
