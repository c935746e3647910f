"""When things happened to a request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from slipstream.wire.telemetry.tracing import NO_SPAN, Span


@dataclass(slots=True)
class Times:
    """Readings of time.perf_counter; 0 for what has not happened.

    Attributes:
        started: it got its place; `first`, its first token; `last`, its latest.
        number: of its sequence, on the drafter too.
        span: its trace.
    """

    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    number: int = 0
    span: Span = NO_SPAN

    @property
    def queued(self) -> float:
        """Seconds from arrival to its place."""
        return self.started - self.arrived if self.started else 0.0

    @property
    def prefill(self) -> float:
        """Seconds from its place to the first token."""
        return self.first - self.started if self.first else 0.0

    @property
    def decode(self) -> float:
        """Seconds from the first token to the last."""
        return self.last - self.first
