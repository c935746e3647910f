"""How generations are kept."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.runs.journal import Bounds


@dataclass(frozen=True, slots=True)
class Options:
    """How generations are kept.

    Attributes:
        resume: whether streams are, without an idempotency key.
        log_ttl, background_ttl: seconds after the last entry of a log.
        patience: seconds that a stream's first event waits for the store.
        most_per_key: generations kept for one API key; 0 for no bound.
        bounds: of what waits to be written.
    """

    resume: bool = True
    log_ttl: float = 600.0
    background_ttl: float = 3600.0
    patience: float = 0.25
    most_per_key: int = 100_000
    bounds: Bounds | None = None
