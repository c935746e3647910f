"""The verifier's metrics: which number of the engine each of them shows."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric

from slipstream.wire.telemetry.metrics import counter, gauge, histogram
from verifier_service.drafter_link import DrafterLink
from verifier_service.engine import VerifierEngine
from verifier_service.kv_import import REASONS

_LAYOUTS = ("alone", "separate", "shared")


class VerifierMetrics:
    """Call it for the metrics of now, from any thread.

    Args:
        link: to the drafter; None where none is configured.
    """

    def __init__(self, engine: VerifierEngine, link: DrafterLink | None) -> None:
        self._engine, self._link = engine, link

    def __call__(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._steps()
        yield from self._cache()
        yield from self._drafts()
        yield from self._overlap()
        if self._link is not None:
            yield from self._drafter(self._link)

    def _requests(self) -> Iterator[Metric]:
        engine, told, counters = self._engine, self._engine.telemetry, self._engine.counters
        yield gauge("num_requests_running", "Sequences that have a place", engine.num_running)
        yield gauge("num_requests_waiting", "Sequences that wait for one", engine.num_waiting)
        text = "Sequences that gave their room back and were computed again"
        yield counter("num_preemptions", text, counters.preemptions)
        text = "Seconds that a request which came now would wait"
        yield gauge("expected_wait_seconds", text, engine.expected_wait_seconds)
        yield counter("prompt_tokens", "Tokens of prompts", counters.prompt_tokens)
        yield counter("generation_tokens", "Tokens decided", counters.generated_tokens)
        yield counter(
            "request_success", "Sequences that ended", told.finished, label="finished_reason"
        )
        yield counter("request_errors", "Sequences that failed", told.errors, label="code")
        yield from self._ended_early()
        for name, text, tally in (
            ("request_queue_time_seconds", "From arrival to a place", told.queued),
            ("request_prefill_time_seconds", "From a place to the first token", told.prefill),
            ("request_decode_time_seconds", "From the first token to the last", told.decode),
            ("time_to_first_token_seconds", "From arrival to the first token", told.first_token),
            ("inter_token_latency_seconds", "A step's gap over its tokens", told.gaps),
            ("e2e_request_latency_seconds", "From arrival to the end", told.whole),
        ):
            yield histogram(name, text, tally)

    def _ended_early(self) -> Iterator[Metric]:
        counters, admission = self._engine.counters, self._engine.admission
        text = "Requests that were not taken"
        yield counter("requests_refused", text, admission.refused, label="bound")
        text = "Requests that found no place in time"
        yield counter("requests_given_up", text, counters.given_up)
        text = "Requests that ended at their deadline"
        yield counter("deadlines_missed", text, counters.deadlines)
        cut = {"unread": counters.cut_clients}
        yield counter("streams_cut", "Streams that were ended early", cut, label="reason")

    def _steps(self) -> Iterator[Metric]:
        told, model_seconds = self._engine.telemetry, self._engine.runner.model_seconds
        yield histogram("engine_step_seconds", "Steps, by what was in them", told.steps, "kind")
        yield histogram("iteration_tokens_total", "Rows of a step", told.rows)
        yield counter("engine_model_seconds", "Time of steps inside the model", model_seconds)

    def _cache(self) -> Iterator[Metric]:
        pool, kv = self._engine.runner.pool, self._engine.kv
        usage = pool.num_used / pool.num_blocks
        yield gauge("kv_cache_usage_perc", "Share of the blocks in use; 1 is all", usage)
        yield gauge(
            "kv_cache_blocks",
            "Blocks of the pool: all, in use, of these held by leases alone, and kept for reuse",
            {
                "total": pool.num_blocks,
                "used": pool.num_used,
                "leased": kv.num_kept,
                "cached": pool.num_cached,
            },
            "state",
        )
        counters, text = self._engine.counters, "Prompt tokens whose keys and values were looked up"
        yield counter("prefix_cache_queries", text, counters.looked_up_prompt_tokens)
        text = "Prompt tokens whose keys and values were there"
        yield counter("prefix_cache_hits", text, counters.cached_prompt_tokens)
        text = "Blocks kept for reuse whose room was needed"
        yield counter("kv_cache_evictions", text, pool.num_evicted)
        yield gauge("kv_leases", "Leases on keys and values that others hold", kv.num_leases)
        yield from self._imports()

    def _imports(self) -> Iterator[Metric]:
        counters = self._engine.counters
        failures = {why: counters.kv_import_failures[why] for why in REASONS}
        for name, text, value in (
            ("resumed", "Generations that went on behind tokens decided before", counters.resumed),
            ("kv_imports", "Prefixes pulled from other verifiers", counters.kv_imports),
            ("kv_imported_tokens", "Tokens of those prefixes", counters.kv_imported_tokens),
            ("kv_imported_bytes", "Their keys and values", counters.kv_imported_bytes),
            ("kv_import_seconds", "Time that requests waited", counters.kv_import_seconds),
        ):
            yield counter(name, text, value)
        text = "Pulls that failed, by reason"
        yield counter("kv_import_failures", text, failures, label="reason")

    def _drafts(self) -> Iterator[Metric]:
        counters, told = self._engine.counters, self._engine.telemetry
        by_position = counters.drafted_by_position
        prefix = "spec_decode_num_"
        for name, text, value in (
            ("drafts", "Runs of drafts that a step verified", sum(by_position[:1])),
            ("draft_tokens", "Drafts verified, guesses included", counters.draft_tokens),
            ("accepted_tokens", "Drafts accepted, guesses included", counters.accepted_tokens),
            ("guess_tokens", "N-gram guesses verified", counters.guess_tokens),
            ("accepted_guess_tokens", "N-gram guesses accepted", counters.accepted_guess_tokens),
        ):
            yield counter(prefix + name, text, value)
        for name, text, values in (
            ("draft_tokens_per_pos", "Drafts verified, by place in the run", by_position),
            ("accepted_tokens_per_pos", "Drafts accepted, by place", counters.accepted_by_position),
        ):
            places = {str(place): value for place, value in enumerate(values)}
            yield counter(prefix + name, text, places, "position")
        yield counter(
            prefix + "wasted_tokens", "Drafts of the drafter that came to nothing", told.wasted,
            "reason",
        )  # fmt: skip
        target, placement = self._engine.speculation.target, self._engine.speculation.placement
        yield gauge("spec_decode_draft_length", "Longest run that is wanted now", target.length)
        yield gauge("spec_decode_draft_worth", "Tokens/s expected over those without", target.worth)
        here = {name: float(name == placement.layout.name) for name in _LAYOUTS}
        yield gauge("placement", "1 for where verifier and drafter compute now", here, "layout")
        yield gauge("placement_on_trial", "1 while that is tried out", placement.on_trial)

    def _overlap(self) -> Iterator[Metric]:
        told, overlap = self._engine.telemetry, self._engine.telemetry.overlap
        for name, text, value in (
            ("pre_verify_hits", "Drafts that a step without drafts found right", told.pre_hits),
            ("pre_verify_misses", "Runs that a step without drafts found wrong", told.pre_misses),
            ("post_verify_hits", "Drafts behind a step's own that were right", told.post_hits),
            ("post_verify_misses", "Runs behind a step's own that were wrong", told.post_misses),
            ("verify_seconds", "Time in steps that decode", overlap.verify_seconds),
            ("overlap_seconds", "Time in them beside a drafter at work", overlap.overlap_seconds),
        ):
            yield counter(f"spec_decode_{name}", text, value)
        text = "Share of recent steps' time beside a drafter at work"
        yield gauge("spec_decode_overlap_ratio", text, overlap.ratio)

    def _drafter(self, link: DrafterLink) -> Iterator[Metric]:
        text = "From a commit to the first draft that knows of it"
        yield histogram("spec_decode_round_trip_seconds", text, link.rounds.round_trip)
        yield gauge("drafter_connected", "1 while there is a drafter", link.connected)
        yield counter("drafter_connections", "Times that one connected", link.connections)
        text = "Seconds without a drafter"
        yield counter("without_drafter_seconds", text, link.absent_seconds)
        yield gauge("draft_seconds", "For one draft, as the drafter says", link.draft_step_seconds)
