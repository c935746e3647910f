"""A request from its first word to its last: its span, and its line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.continuation import Piece
from gateway.request import GenerationRequest
from slipstream.core.errors import SlipstreamError
from slipstream.wire.telemetry import logs
from slipstream.wire.telemetry.tracing import Span, Tracing, incoming

log = logging.getLogger(__name__)


class Watch:
    """What a request has got so far.

    Attributes:
        span: of the request; calls to the verifier continue it.
    """

    def __init__(self, span: Span) -> None:
        self.span = span
        self.reasons: list[str] = []
        self._tokens: dict[int, int] = {}

    @property
    def tokens(self) -> int:
        return sum(self._tokens.values())

    def piece(self, piece: Piece) -> None:
        if not self._tokens:
            self.span.event("first token")
        self._tokens[piece.index] = piece.completion_tokens
        if piece.finish_reason is not None:
            self.reasons.append(piece.finish_reason)


@contextmanager
def watched(tracing: Tracing, request: GenerationRequest, model: str) -> Iterator[Watch]:
    """Around the service of a request: one span and one line, whatever becomes of it."""
    began, outcome = time.perf_counter(), "abandoned"
    span = tracing.span(f"{request.operation} {model}", "server", incoming.get())
    watch = Watch(span)
    logs.request_id.set(request.request_id)
    logs.trace_id.set(span.trace_id)
    try:
        yield watch
        outcome = "done"
    except SlipstreamError as failure:
        outcome = f"refused or failed ({failure.code}: {failure})"
        span.fail(failure.code, str(failure))
        raise
    finally:
        if span.recording:
            _describe(span, request, watch, model)
        span.end()
        seconds, tokens = time.perf_counter() - began, request.prompt_tokens
        log.info(
            "%s: %d prompt tokens, %d tokens, %s, %.3f s",
            request.request_id, tokens, watch.tokens, outcome, seconds,
        )  # fmt: skip


def _describe(span: Span, request: GenerationRequest, watch: Watch, model: str) -> None:
    """OpenTelemetry's names for generative AI, where it has some."""
    sampling = request.sampling
    span.set(
        {
            "gen_ai.operation.name": request.operation,
            "gen_ai.provider.name": "slipstream",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": request.request_id,
            "gen_ai.request.choice.count": request.n,
            "gen_ai.request.max_tokens": request.max_tokens,
            "gen_ai.request.seed": sampling.seed,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.top_k": sampling.top_k,
            "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
            "gen_ai.request.presence_penalty": sampling.presence_penalty,
            "gen_ai.response.finish_reasons": watch.reasons,
            "gen_ai.usage.input_tokens": request.prompt_tokens,
            "gen_ai.usage.output_tokens": watch.tokens,
            "slipstream.tenant": request.terms.tenant or None,
        }
    )
