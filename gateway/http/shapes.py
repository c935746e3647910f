"""Pieces as OpenAI's JSON: chat and legacy completions differ in their choices only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from gateway.continuation import Piece
from gateway.request import GenerationRequest
from gateway.stats import Totals
from slipstream.wire.proto import types_pb2

TokenBytes = Callable[[int], bytes]


class Shape(Protocol):
    """How one endpoint writes its choices."""

    kind: str
    chunk_kind: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the first chunk, before any text."""

    def delta(self, piece: Piece) -> dict[str, Any]:
        """The choice of a chunk with progress."""

    def ending(self, piece: Piece) -> dict[str, Any]:
        """The choice of the chunk that says why it ended: with the text of a piece without tokens,
        which is final because nothing follows."""

    def choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        """The choice of a whole body."""


class ChatShape:
    """Choices of /v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, token_bytes: TokenBytes, *, logprobs: bool) -> None:
        self._bytes = token_bytes
        self._with_logprobs = logprobs

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def delta(self, piece: Piece) -> dict[str, Any]:
        return self._chunk(piece.index, {"content": piece.text}, self._logprobs([piece]), None)

    def ending(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text and not piece.tokens else {}
        return self._chunk(piece.index, delta, None, piece.finish_reason)

    def choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        content = "".join(piece.text for piece in pieces)
        return {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": self._logprobs(pieces),
            "finish_reason": pieces[-1].finish_reason,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        tokens = [token for piece in pieces for token in piece.tokens]
        return {"content": [self._token(token) for token in tokens], "refusal": None}

    def _token(self, token: types_pb2.Token) -> dict[str, Any]:
        top = [self._entry(entry.token_id, entry.logprob) for entry in token.top_logprobs]
        return {**self._entry(token.id, token.logprob), "top_logprobs": top}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._bytes(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}


class CompletionShape:
    """Choices of /v1/completions."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, token_bytes: TokenBytes, *, logprobs: bool) -> None:
        self._bytes = token_bytes
        self._with_logprobs = logprobs

    def opening(self, index: int) -> None:  # noqa: ARG002
        return None

    def delta(self, piece: Piece) -> dict[str, Any]:
        return self._choice(piece.index, piece.text, self._logprobs([piece]), None)

    def ending(self, piece: Piece) -> dict[str, Any]:
        text = "" if piece.tokens else piece.text
        return self._choice(piece.index, text, None, piece.finish_reason)

    def choice(self, index: int, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return self._choice(index, text, self._logprobs(pieces), pieces[-1].finish_reason)

    def _choice(self, index: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        tokens = [token for piece in pieces for token in piece.tokens]
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [offset for piece in pieces for offset in piece.offsets],
        }

    def _top(self, token: types_pb2.Token) -> dict[str, float]:
        # The chosen token is always there, as OpenAI has it, even if it is not among the likeliest.
        entries = [
            *token.top_logprobs,
            types_pb2.TopLogprob(token_id=token.id, logprob=token.logprob),
        ]
        return {self._text(entry.token_id): entry.logprob for entry in entries}

    def _text(self, token_id: int) -> str:
        return self._bytes(token_id).decode(errors="replace")


def shape_of(request: GenerationRequest, token_bytes: TokenBytes) -> Shape:
    """As the request's endpoint writes its choices."""
    kind = ChatShape if request.operation == "chat" else CompletionShape
    return kind(token_bytes, logprobs=request.logprobs is not None)


class Envelope:
    """The fields around the choices, the same for all chunks of one request.

    Args:
        name: the answer's id.
        created: seconds since the epoch.
    """

    def __init__(self, request: GenerationRequest, model: str, name: str, created: int) -> None:
        self._base = {
            "id": name,
            "created": created,
            "model": model,
            "system_fingerprint": None,
        }
        self._seed = request.sampling.seed

    def body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": kind, **self._base, "choices": choices}

    def closing(self, totals: Totals) -> dict[str, Any]:
        """What the last chunk, or the body, carries beyond OpenAI's fields."""
        closing = {"seed": self._seed, "metrics": totals.metrics()}
        return closing if totals.session is None else {**closing, "session": totals.session}
