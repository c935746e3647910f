"""A request from its first word to its last: its span, and its line in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from slipstream.core.errors import SlipstreamError
from slipstream.wire.telemetry import logs
from slipstream.wire.telemetry.tracing import Span, Tracing, trace_headers
from verifier_service.generation import GenerationRequest, Progress, SpeculationCounts

log = logging.getLogger(__name__)


class Watch:
    """What a request has got so far. On the event loop."""

    def __init__(self) -> None:
        self.tokens = 0
        self.outcome = "abandoned"
        self.counts: SpeculationCounts | None = None

    def heard(self, progress: Progress) -> None:
        self.tokens += len(progress.tokens)
        self.counts = progress.counts or self.counts
        if progress.finish is not None:
            self.outcome = progress.finish.value


@contextmanager
def watched(
    tracing: Tracing, request: GenerationRequest, metadata: Iterable[tuple[str, str | bytes]] | None
) -> Iterator[Watch]:
    """Around the service of a request.

    Args:
        metadata: of the call; may name the span that this one belongs to.
    """
    times, watch = request.times, Watch()
    span = times.span = tracing.span("generate", "server", trace_headers(metadata), times.arrived)
    logs.request_id.set(request.request_id)
    logs.trace_id.set(span.trace_id)
    try:
        yield watch
    except SlipstreamError as failure:
        watch.outcome = failure.code
        span.fail(failure.code, failure.message)
        raise
    finally:
        if span.recording:
            _describe(span, request, watch)
        span.end()
        log.info(
            "request %s: sequence %d, %d prompt tokens, %d tokens, %s; queued %.3f s, prefill"
            " %.3f s, decode %.3f s",
            request.request_id, times.number, len(request.prompt), watch.tokens, watch.outcome,
            times.queued, times.prefill, times.decode,
        )  # fmt: skip


def _describe(span: Span, request: GenerationRequest, watch: Watch) -> None:
    times, counts = request.times, watch.counts or SpeculationCounts()
    if times.started:
        span.event("started", times.started)
    if times.first:
        span.event("first token", times.first)
    span.set(
        {
            "gen_ai.response.id": request.request_id,
            "gen_ai.usage.input_tokens": len(request.prompt),
            "gen_ai.usage.output_tokens": watch.tokens,
            "slipstream.sequence": times.number,
            "slipstream.outcome": watch.outcome,
            "slipstream.queue_seconds": times.queued,
            "slipstream.prefill_seconds": times.prefill,
            "slipstream.decode_seconds": times.decode,
            "slipstream.steps": counts.steps,
            "slipstream.draft_tokens": counts.drafted,
            "slipstream.accepted_tokens": counts.accepted,
        }
    )
