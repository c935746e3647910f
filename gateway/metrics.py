"""Prometheus metrics, with vLLM's names under the prefix `slipstream:`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.continuation import Piece
from slipstream.core.errors import SlipstreamError
from slipstream.wire.proto import types_pb2

_LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 600.0)
_GAP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Owns a registry of its own, so that several gateways can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ttft = self._histogram("time_to_first_token_seconds", _LATENCY)
        self.itl = self._histogram("inter_token_latency_seconds", _GAP)
        self.chunk_gap = self._histogram("inter_chunk_latency_seconds", _GAP)
        self.e2e = self._histogram("e2e_request_latency_seconds", _LATENCY)
        self.prompt_tokens = self._counter("prompt_tokens")
        self.generation_tokens = self._counter("generation_tokens")
        self.success = self._counter("request_success", "finished_reason")
        self.errors = self._counter("request_errors", "code")
        self.running = Gauge(
            "slipstream:num_requests_running",
            "Requests in progress, those that wait in the verifier's queue included",
            registry=self.registry,
        )
        self.refused = self._counter("requests_refused", "bound")
        self.cut = self._counter("streams_cut", "reason")
        self.verifier_calls = Gauge(
            "slipstream:verifier_calls", "Calls to the verifier in progress", registry=self.registry
        )
        self.tasks = Gauge(
            "slipstream:asyncio_tasks", "Tasks of the event loop", registry=self.registry
        )
        self.drafts = self._counter("spec_decode_num_drafts")
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens")
        self.accepted = self._counter("spec_decode_num_accepted_tokens")
        # Of the two above, the verifier's n-gram guesses; the others are the drafter's.
        self.guess_tokens = self._counter("spec_decode_num_guess_tokens")
        self.accepted_guesses = self._counter("spec_decode_num_accepted_guess_tokens")
        self.accepted_at = self._counter("spec_decode_num_accepted_tokens_per_pos", "position")

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"slipstream:{name}", name.replace("_", " "), buckets=buckets, registry=self.registry
        )

    def _counter(self, name: str, *labels: str) -> Counter:
        return Counter(f"slipstream:{name}", name.replace("_", " "), labels, registry=self.registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    @contextmanager
    def request(self, prompt_tokens: int) -> Iterator[RequestWatch]:
        """Counts one request while the block runs; errors of the tree are counted by code."""
        self.running.inc()
        try:
            watch = RequestWatch(self, prompt_tokens)
            yield watch
            self.e2e.observe(time.perf_counter() - watch.began)
        except (asyncio.CancelledError, GeneratorExit):
            self.success.labels("abort").inc()
            raise
        except SlipstreamError as failure:
            self.errors.labels(failure.code).inc()
            raise
        finally:
            self.running.dec()

    def speculation(self, stats: types_pb2.SpeculationStats) -> None:
        self.drafts.inc(stats.num_spec_steps)
        self.draft_tokens.inc(stats.num_draft_tokens)
        self.accepted.inc(stats.num_accepted_tokens)
        self.guess_tokens.inc(stats.num_guess_tokens)
        self.accepted_guesses.inc(stats.num_accepted_guess_tokens)
        histogram = stats.acceptance_histogram
        for position in range(len(histogram) - 1):
            # A step that accepted more than `position` tokens accepted the one there.
            self.accepted_at.labels(position).inc(sum(histogram[position + 1 :]))


class RequestWatch:
    """Times the pieces of one request."""

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self.began = time.perf_counter()
        self._last: dict[int, float] = {}

    def piece(self, piece: Piece) -> None:
        metrics = self._metrics
        now = time.perf_counter()
        if not self._last:
            metrics.ttft.observe(now - self.began)
            metrics.prompt_tokens.inc(self._prompt_tokens)
        count = len(piece.tokens)
        before = self._last.get(piece.index)
        if before is not None and count:
            metrics.chunk_gap.observe(now - before)
            for _ in range(count):
                metrics.itl.observe((now - before) / count)
        self._last[piece.index] = now
        metrics.generation_tokens.inc(count)
        if piece.finish_reason is not None:
            metrics.success.labels(piece.finish_reason).inc()
            if piece.stats is not None:
                metrics.speculation(piece.stats)
