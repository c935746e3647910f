"""The drafter's metrics, and those of a shard behind the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import Metric

from drafter_service.adaptive import AdaptiveCounters
from drafter_service.draft import Draft, Part, Work
from drafter_service.engine import DrafterEngine
from drafter_service.kv_load import KvCounters
from drafter_service.shard_counters import ShardCounters
from drafter_service.shard_engine import ShardEngine
from drafter_service.stage import Drawn
from slipstream.core.draft import Commit
from slipstream.engine.runner import ModelRunner
from slipstream.wire.telemetry.metrics import (
    GAP,
    SMALL,
    TOKENS,
    Tally,
    counter,
    gauge,
    histogram,
)


class Watch(Part):
    """Follows the sequences and counts what a commit or a pass did.

    Attributes:
        depths: drafts that a commit which contradicted some of them rolled back.
    """

    def __init__(self) -> None:
        self.depths, self.rows, self.passes = Tally(SMALL), Tally(TOKENS), Tally(GAP)

    def committed(self, draft: Draft, command: Commit, lost: int) -> None:  # noqa: ARG002 a hook
        if lost:
            self.depths.observe(lost)

    def passed(self, work: Sequence[Work], drawn: Sequence[Drawn], seconds: float) -> None:  # noqa: ARG002 a hook
        self.passes.observe(seconds)
        self.rows.observe(sum(len(item.segment.tokens) for item in work))


class DrafterMetrics:
    """Call it for the metrics of now, from any thread.

    Args:
        shard: of the first shard's own part; None for a drafter in one piece.
    """

    def __init__(
        self,
        engine: DrafterEngine,
        watch: Watch,
        kv: KvCounters,
        adaptive: AdaptiveCounters,
        shard: ShardCounters | None,
    ) -> None:
        self._engine, self._watch, self._kv = engine, watch, kv
        self._adaptive, self._shard = adaptive, shard

    def __call__(self) -> Iterator[Metric]:
        yield from holdings(self._engine.runner, self._engine.num_open)
        yield from self._drafting()
        yield from self._context()
        if self._shard is not None:
            yield from row(self._shard)

    def _drafting(self) -> Iterator[Metric]:
        counters, watch, adaptive = self._engine.counters, self._watch, self._adaptive
        yield histogram("drafter_pass_seconds", "Forward passes", watch.passes)
        yield histogram("drafter_pass_rows", "Rows of a pass", watch.rows)
        text = "Drafts that one commit took back, where it took any"
        yield histogram("drafter_rollback_depth", text, watch.depths)
        yield gauge(
            "draft_seconds", "Seconds of a pass for one draft", counters.single_step_seconds
        )
        for name, text, value in (
            ("drafted_tokens", "Drafts made", counters.drafted_tokens),
            ("rolled_back_tokens", "Drafts that commits took back", counters.rolled_back_tokens),
            ("guessed_tokens", "N-gram guesses that had a row", counters.guessed_tokens),
            ("right_guesses", "N-gram guesses that were right", counters.right_guesses),
            ("early_stops", "Pauses for want of confidence", counters.early_stops),
            ("plan_trials", "Skip sets tried on spare time", adaptive.trials),
            ("plan_moves", "Moves to a better skip set", adaptive.moves),
            ("spare_seconds", "Spare time for trials and moves", adaptive.spare_seconds),
        ):
            yield counter(f"drafter_{name}", text, value)

    def _context(self) -> Iterator[Metric]:
        kv, counters = self._kv, self._engine.counters
        for name, text, value in (
            ("kv_pulls", "Contexts fetched from verifiers", kv.pulls),
            ("kv_pulled_positions", "Positions of contexts fetched", kv.pulled_positions),
            ("kv_pulled_bytes", "Bytes of contexts fetched", kv.pulled_bytes),
            ("kv_shared_bytes", "Of these bytes, through shared memory", kv.shared_bytes),
            ("kv_pull_seconds", "From asking to the last byte of contexts", kv.pull_seconds),
            ("kv_refreshed_positions", "Positions taken over later", kv.refreshed_positions),
            ("kv_refreshed_bytes", "Bytes of positions taken over later", kv.refreshed_bytes),
            (
                "prefilled_positions",
                "Positions of prompts that were computed",
                counters.prefilled_positions,
            ),
            ("prefill_seconds", "Time for computing prompts", counters.prefill_seconds),
        ):
            yield counter(f"drafter_{name}", text, value)
        text = "Contexts that were computed after all"
        yield counter("drafter_kv_fallbacks", text, kv.fallbacks, "reason")


def holdings(runner: ModelRunner, num_open: int) -> Iterator[Metric]:
    """What every part of a drafter holds."""
    pool, loaded = runner.pool, runner.loaded
    yield gauge("drafter_open_sequences", "Sequences open", num_open)
    yield gauge(
        "kv_cache_usage_perc", "Share of the blocks in use", pool.num_used / pool.num_blocks
    )
    yield gauge("drafter_weight_bytes", "Bytes of weights", loaded.weight_bytes)
    yield gauge("drafter_shard", "Number of this shard, from 0", loaded.shard.index)


def row(counters: ShardCounters) -> Iterator[Metric]:
    """How busy a shard is."""
    yield counter("drafter_shard_passes", "Passes of this shard", counters.passes)
    yield counter(
        "drafter_shard_overlapped_passes",
        "Passes of this shard that began beside another one",
        counters.overlapped,
    )
    yield counter(
        "drafter_shard_busy_seconds", "Time in which this shard computed", counters.busy_seconds
    )


def shard_metrics(engine: ShardEngine) -> Iterator[Metric]:
    """The metrics of now of a shard behind the first."""
    yield from holdings(engine.runner, engine.num_open)
    yield from row(engine.counters)
