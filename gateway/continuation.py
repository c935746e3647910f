"""One continuation as it grows: tokens in, final text out, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.detokenizer import Detokenizer
from gateway.stop_strings import StopStrings
from slipstream.core.errors import InternalError, Unavailable
from slipstream.wire.proto import gateway_pb2, types_pb2, verifier_pb2

_REASONS = {
    types_pb2.FINISH_REASON_STOP: "stop",
    types_pb2.FINISH_REASON_LENGTH: "length",
}


@dataclass(frozen=True, slots=True)
class Output:
    """All of a continuation, whatever of it the client has.

    Attributes:
        text: without the stop string.
        token_ids: without the token that ended it; those that spell a stop string are there.
    """

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Progress of one continuation.

    Attributes:
        index: which continuation of the request.
        text: what became final; may lag behind the tokens.
        tokens: what the verifier decided, without what follows a stop string.
        offsets: for each token, the length of the final text before it.
        finish_reason: "stop" or "length" on the continuation's last piece, else None.
        completion_tokens: how many so far, the one that ends a stop string included.
        cached_tokens: of the prompt, those whose keys and values the verifier had already.
        stats: of speculation; on the last piece, where the verifier has told them.
        output: on the last piece.
        session: on the last piece of a session's turn.
    """

    index: int
    text: str
    tokens: Sequence[types_pb2.Token]
    offsets: Sequence[int]
    finish_reason: str | None
    completion_tokens: int
    cached_tokens: int
    stats: types_pb2.SpeculationStats | None
    output: Output | None = None
    session: gateway_pb2.SessionState | None = None


class Continuation:
    """Turns the verifier's messages into pieces. One mutable object for each stream.

    Args:
        index: of the continuation in its request.
        detokenizer: fresh.
        stop_strings: fresh.
        end_tokens: tokens that end the generation; they have no text of their own.

    Attributes:
        tokens: how many it has taken.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        stop_strings: StopStrings,
        end_tokens: frozenset[int],
    ) -> None:
        self._index = index
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._end_tokens = end_tokens
        self.tokens = 0
        self._characters = 0
        self._texts: list[str] = []
        self._ids: list[int] = []

    def take(self, message: verifier_pb2.GenerateResponse) -> Piece:
        """The piece that the message completes. After one with a finish reason, stop reading.

        Raises:
            Unavailable: the verifier gave the generation up.
        """
        texts: list[str] = []
        offsets: list[int] = []
        reason: str | None = None
        for token in message.tokens:
            offsets.append(self._characters)
            stopped = self._push(token.id, texts)
            if stopped:
                reason = "stop"
                break
        if reason is None and message.finish_reason:
            reason = self._finish(message.finish_reason, texts)
        self._texts += texts
        return Piece(
            index=self._index,
            text="".join(texts),
            tokens=message.tokens[: len(offsets)],
            offsets=offsets,
            finish_reason=reason,
            completion_tokens=self.tokens,
            cached_tokens=message.cached_prompt_tokens,
            stats=message.stats if reason and message.HasField("stats") else None,
            output=self._output(reason) if reason else None,
        )

    def _output(self, reason: str) -> Output:
        ended = reason == "stop" and self._ids and self._ids[-1] in self._end_tokens
        return Output("".join(self._texts), tuple(self._ids[:-1] if ended else self._ids))

    def _push(self, token_id: int, texts: list[str]) -> bool:
        """Whether a stop string is complete with this token."""
        self.tokens += 1
        self._ids.append(token_id)
        if token_id in self._end_tokens:
            return False
        text = self._detokenizer.push(token_id)
        self._characters += len(text)
        scan = self._stop_strings.feed(text)
        if not scan.matched and (pending := self._detokenizer.pending):
            # Characters that are whole but held may complete the stop string already.
            ahead = self._stop_strings.peek(pending)
            if ahead.matched:
                texts += [scan.text, ahead.text]
                return True
        texts.append(scan.text)
        return scan.matched

    def _finish(self, finish: types_pb2.FinishReason, texts: list[str]) -> str:
        reason = _REASONS.get(finish)
        if reason is None:
            name = types_pb2.FinishReason.Name(finish)
            raise Unavailable(f"the verifier gave the generation up ({name})")
        scan = self._stop_strings.feed(self._detokenizer.flush())
        texts.append(scan.text)
        if scan.matched:
            return "stop"
        texts.append(self._stop_strings.flush())
        return reason

    def cut(self) -> InternalError:
        """The error for a stream that ended without a finish reason."""
        return InternalError(
            f"the verifier's stream ended after {self.tokens} tokens without a finish reason"
        )
