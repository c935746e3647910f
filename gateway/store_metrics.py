"""What the gateway tells of its session store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import Metric

from slipstream.store import GuardedStore
from slipstream.wire.telemetry.metrics import GAP, Tally, counter, gauge, histogram


class StoreMetrics:
    """One for the process.

    Attributes:
        guard: the store; None where this gateway has none of its own.
        calls: by outcome.
        seconds: of calls that were answered.
    """

    def __init__(self) -> None:
        self.guard: GuardedStore | None = None
        outcomes = ("ok", "conflict", "timeout", "unavailable", "refused", "cancelled")
        self.calls: Counter[str] = Counter(dict.fromkeys(outcomes, 0))
        self.seconds = Tally(GAP)

    def call(self, operation: str, outcome: str, seconds: float) -> None:  # noqa: ARG002
        """One has ended, in whatever way."""
        self.calls[outcome] += 1
        if outcome in {"ok", "conflict"}:
            self.seconds.observe(seconds)

    def families(self) -> Iterator[Metric]:
        guard = self.guard
        up = guard is not None and guard.state == "ok"
        yield gauge("session_store_up", "Whether the session store answers", int(up))
        yield counter("session_store_calls", "Calls to the session store", self.calls, "outcome")
        text = "What calls to the session store took that were answered"
        yield histogram("session_store_call_seconds", text, self.seconds)
