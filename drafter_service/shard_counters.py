"""How busy a shard is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class ShardCounters:
    """Totals since the start. Written by the engine's thread, read by anyone.

    Attributes:
        overlapped: passes that began while another one was under way.
        busy_seconds: in which the shard computed.
    """

    started: float = field(default_factory=time.monotonic)
    passes: int = 0
    overlapped: int = 0
    busy_seconds: float = 0.0

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Around the computation of a pass."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.passes += 1
            self.busy_seconds += time.perf_counter() - began
