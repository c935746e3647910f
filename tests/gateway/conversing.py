"""Sessions without a front door: a clock to move, a store that fails, turns of plain text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from gateway.continuation import Output, Piece
from gateway.course import Course
from gateway.request import GenerationRequest
from gateway.sessions import Conversations, Limits, Sessions
from slipstream.core.errors import StoreUnavailable
from slipstream.core.params import SamplingParams
from slipstream.store import MemoryStore
from slipstream.wire.proto import gateway_pb2


class Clock:
    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sessions_at(clock: Clock, store: Any = None, skew: float = 0.0, **limits: Any) -> Sessions:
    """A gateway's, whose clock is ahead by `skew`. Without a store, it has one of its own."""
    own = MemoryStore(clock) if store is None else store
    return Sessions(own, Limits(**limits), lambda: clock() + skew, clock)


def text_turn(text: str, output: str, request_id: str = "r") -> gateway_pb2.SessionTurn:
    made = gateway_pb2.SessionTurn(request_id=request_id, text=text, output_text=output)
    made.usage.prompt_tokens, made.usage.completion_tokens = len(text), len(output)
    return made


class TextAsked:
    """A request for a text session; the whole of it is a list of texts."""

    def __init__(self, session_id: str, session_turn: int | None, text: str) -> None:
        self.session_id = session_id
        self.session_turn = session_turn
        self._text = text

    def turn(self) -> gateway_pb2.SessionTurn:
        return gateway_pb2.SessionTurn(text=self._text)

    def whole(self, turns: Any) -> list[str]:
        before = [text for turn in turns for text in (turn.text, turn.output_text)]
        return [*before, self._text]


def request_of(name: str) -> GenerationRequest:
    return GenerationRequest(name, ((1, 2, 3),), SamplingParams(seed=5))


async def answering(output: str, pause: asyncio.Event | None = None) -> AsyncGenerator[Piece, None]:
    """The pieces of an answer; the last one waits for `pause`."""
    yield Piece(0, output[:1], (), (), None, 1, 0, None)
    if pause is not None:
        await pause.wait()
    end = Output(output, (7,))
    yield Piece(0, output[1:], (), (), "stop", 2, 0, None, output=end)


async def say(
    sessions: Sessions, session_id: str, turn: int | None, text: str, output: str, name: str = "r"
) -> tuple[list[str], gateway_pb2.SessionState]:
    """What the prompt was made of, and what became of the turn."""
    asked = TextAsked(session_id, turn, text)
    conversation = await Conversations(sessions).of(asked, [text], "me")
    run = conversation.recorded(answering(output), request_of(name), Course())
    pieces = [piece async for piece in run]
    assert "".join(piece.text for piece in pieces) == output
    assert pieces[-1].session is not None
    return conversation.body, pieces[-1].session


class FaultyStore:
    """A store whose calls fail as planned.

    Args:
        inner: does the work.
        faults: by the number of the call, from 0: "before" it was done, "after" it was done, or
            "hang", which ends when the caller's patience does.
        patience: seconds, as those of a guarded store.
    """

    def __init__(self, inner: MemoryStore, faults: dict[int, str], patience: float = 0.01) -> None:
        self._inner = inner
        self.faults = faults
        self.patience = patience
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            fault = self.faults.get(self.calls)
            self.calls += 1
            if fault == "hang":
                await asyncio.sleep(self.patience)
            if fault in {"before", "hang"}:
                raise StoreUnavailable("the store does not answer")
            result = await method(*args, **kwargs)
            if fault == "after":
                raise StoreUnavailable("the store did not answer in time")
            return result

        return call
