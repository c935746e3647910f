"""What the gateway counts, for Prometheus: under vLLM's names where vLLM has them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import Metric, generate_latest

from gateway.continuation import Piece
from gateway.store_metrics import StoreMetrics
from slipstream.core.errors import SlipstreamError
from slipstream.discovery.endpoints import Discovery
from slipstream.wire.proto import types_pb2
from slipstream.wire.telemetry.metrics import (
    GAP,
    LATENCY,
    TOKENS,
    Exposition,
    Tally,
    counter,
    gauge,
    histogram,
)

FAILOVER_REASONS = (
    "connection",
    "heartbeat",
    "silent",
    "corrupted",
    "cancelled",
    "error",
    "draining",
)


class Journalled(Protocol):
    """What is told of the journal; `gateway.runs.journal` has one."""

    pending_bytes: int
    dropped: Counter[str]

    @property
    def lag(self) -> float:
        """Seconds for which the oldest message has waited."""


class Metrics:
    """Lives on the event loop, which alone counts.

    Args:
        model: the model's name for clients.

    Attributes:
        refused: requests, by the bound that they met; `cut`, streams, by the reason.
        resumed: generations that went on from their logs, by the way that led there.
        unkept: streams for which their key had no room, so that they cannot be resumed.
        failovers: calls that were left for another verifier, by the reason.
        discovery: asks how the Services of Kubernetes are followed.
        verifier_calls, tasks: ask how many there are now; `verifiers`, by their state.
        journal: what waits to be written to the store; None where nothing is kept.
        store: how the store answers.
    """

    def __init__(self, model: str = "") -> None:
        self.ttft, self.e2e = Tally(LATENCY), Tally(LATENCY)
        self.itl, self.chunk_gap = Tally(GAP), Tally(GAP)
        self.prompts, self.outputs = Tally(TOKENS), Tally(TOKENS)
        self.success: Counter[str] = Counter(stop=0, length=0, abort=0)
        self.errors: Counter[str] = Counter()
        self.running = self.generated = 0
        self.drafted: Counter[str] = Counter()
        self.accepted_at: Counter[int] = Counter()
        self.refused: Counter[str] = Counter(gateway=0, key=0, sessions=0, generations=0)
        self.cut: Counter[str] = Counter(unread=0)
        self.resumed: Counter[str] = Counter(event_id=0, idempotency=0, adopted=0)
        self.unkept = 0
        self.journal: Journalled | None = None
        self.store = StoreMetrics()
        self.failovers: Counter[str] = Counter(dict.fromkeys(FAILOVER_REASONS, 0))
        self.failover_pause = Tally(LATENCY)
        self.verifier_calls: Callable[[], int] = int
        self.verifiers: Callable[[], Mapping[str, int]] = dict
        self.discovery: Callable[[], Sequence[Discovery]] = tuple
        self.tasks: Callable[[], int] = int
        self._exposition = Exposition("gateway", model, self._families)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._exposition.registry)

    def _families(self) -> Iterator[Metric]:
        for name, text, tally in (
            ("time_to_first_token_seconds", "From the request to the first token", self.ttft),
            ("inter_token_latency_seconds", "A chunk's gap over its tokens", self.itl),
            ("inter_chunk_latency_seconds", "From chunk to chunk of an answer", self.chunk_gap),
            ("e2e_request_latency_seconds", "From the request to its end", self.e2e),
            ("request_prompt_tokens", "Tokens of a request's prompts", self.prompts),
            ("request_generation_tokens", "Tokens of a continuation", self.outputs),
        ):
            yield histogram(name, text, tally)
        yield counter("prompt_tokens", "Tokens of prompts", self.prompts.total)
        yield counter("generation_tokens", "Tokens that clients were sent", self.generated)
        text = "Requests in progress, those that wait in the verifier's queue included"
        yield gauge("num_requests_running", text, self.running)
        yield counter(
            "request_success", "Continuations that ended", self.success, "finished_reason"
        )
        yield counter("request_errors", "Requests that failed", self.errors, "code")
        yield counter("requests_refused", "Requests that found no room", self.refused, "bound")
        yield counter("streams_cut", "Streams that were ended early", self.cut, "reason")
        yield gauge("verifier_calls", "Calls to the verifier in progress", self.verifier_calls())
        yield gauge("verifiers", "Verifiers, by what they are good for", self.verifiers(), "state")
        yield from self._discovery()
        text = "Times that a generation went on at another verifier, or anew at the same"
        yield counter("failovers", text, self.failovers, "reason")
        text = "From the loss of a verifier, or leaving it, to the next token"
        yield histogram("failover_pause_seconds", text, self.failover_pause)
        yield gauge("asyncio_tasks", "Tasks of the event loop", self.tasks())
        yield from self._kept()
        yield from self.store.families()
        yield from self._speculation()

    def _discovery(self) -> Iterator[Metric]:
        found = self.discovery()
        text = "1: its EndpointSlices are followed; 0: something stands in for them"
        up = {one.entry: float(not one.detail) for one in found}
        yield gauge("discovery_up", text, up, "service")
        states = {"ready": sum(one.ready for one in found)}
        states["draining"] = sum(one.draining for one in found)
        text = "Verifiers that Services of Kubernetes have"
        yield gauge("discovery_endpoints", text, states, "state")

    def _kept(self) -> Iterator[Metric]:
        text = "Generations that went on from their logs"
        yield counter("generations_resumed", text, self.resumed, "way")
        text = "Streams that cannot be resumed, since their key has all that it may have"
        yield counter("streams_unkept", text, self.unkept)
        journal = self.journal
        waiting, lag, dropped = 0, 0.0, Counter(full=0, gap=0)
        if journal is not None:
            waiting, lag, dropped = journal.pending_bytes, journal.lag, journal.dropped
        yield gauge("journal_pending_bytes", "Bytes of logs that wait for the store", waiting)
        yield gauge("journal_lag_seconds", "For how long the oldest of them has waited", lag)
        text = "Logs that were given up, to be computed again"
        yield counter("journal_dropped_logs", text, dropped, "reason")

    def _speculation(self) -> Iterator[Metric]:
        prefix = "spec_decode_num_"
        for name, text in (
            ("drafts", "Runs of drafts that were verified"),
            ("draft_tokens", "Drafts verified, guesses included"),
            ("accepted_tokens", "Drafts accepted, guesses included"),
            ("guess_tokens", "N-gram guesses of the verifier that were verified"),
            ("accepted_guess_tokens", "N-gram guesses accepted"),
        ):
            yield counter(prefix + name, text, self.drafted[name])
        places = {str(place): number for place, number in sorted(self.accepted_at.items())}
        text = "Drafts accepted, by place in the run"
        yield counter(prefix + "accepted_tokens_per_pos", text, places, "position")

    @contextmanager
    def request(self, prompt_tokens: int) -> Iterator[RequestWatch]:
        """Counts one request while the block runs; errors of the tree are counted by code."""
        self.running += 1
        try:
            watch = RequestWatch(self, prompt_tokens)
            yield watch
            self.e2e.observe(time.perf_counter() - watch.began)
        except (asyncio.CancelledError, GeneratorExit):
            self.success["abort"] += 1
            raise
        except SlipstreamError as failure:
            self.errors[failure.code] += 1
            raise
        finally:
            self.running -= 1

    def speculation(self, stats: types_pb2.SpeculationStats) -> None:
        """What speculation did for a continuation that has ended."""
        self.drafted.update(
            drafts=stats.num_spec_steps,
            draft_tokens=stats.num_draft_tokens,
            accepted_tokens=stats.num_accepted_tokens,
            guess_tokens=stats.num_guess_tokens,
            accepted_guess_tokens=stats.num_accepted_guess_tokens,
        )
        steps = stats.acceptance_histogram
        for position in range(len(steps) - 1):
            # A step that accepted more than `position` tokens accepted the one there.
            self.accepted_at[position] += sum(steps[position + 1 :])


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
            metrics.prompts.observe(self._prompt_tokens)
        count = len(piece.tokens)
        before = self._last.get(piece.index)
        if before is not None and count:
            metrics.chunk_gap.observe(now - before)
            metrics.itl.observe((now - before) / count, count)
        self._last[piece.index] = now
        metrics.generated += count
        if piece.finish_reason is not None:
            metrics.success[piece.finish_reason] += 1
            metrics.outputs.observe(piece.completion_tokens)
            if piece.stats is not None:
                metrics.speculation(piece.stats)
