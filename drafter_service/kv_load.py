"""What is known of a sequence's keys and values while they come."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from drafter_service.draft import Draft
from drafter_service.kv_fetch import Fetch
from slipstream.core.prefix import Prefix


@dataclass(slots=True)
class KvCounters:
    """Totals since the start, of all shards. Written by the engine's thread, read by anyone."""

    pulls: int = 0
    pulled_positions: int = 0
    pulled_bytes: int = 0
    shared_bytes: int = 0
    pull_seconds: float = 0.0
    pull_wait_seconds: float = 0.0
    refreshed_positions: int = 0
    refreshed_bytes: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Shard:
    """How far one shard has come with a sequence.

    Attributes:
        reached: positions that are known to be those of the sequence; None where it needs none.
        unknown: what has come and was not committed yet.
    """

    reached: int | None = 0
    unknown: deque[Prefix] = field(default_factory=deque)

    def follows(self, draft: Draft) -> bool:
        """Compares what has come with what is committed; False where it is another text."""
        while self.unknown and self.unknown[0].length <= draft.committed:
            prefix = self.unknown.popleft()
            if not draft.sequence.chain.names(prefix):
                return False
            self.reached = prefix.length
        return True


@dataclass(slots=True, eq=False)
class Load:
    """A sequence whose context is on its way, or followed. The engine's thread owns it.

    Attributes:
        prefix: of the positions to fetch before the first draft.
        taken: positions that all shards have in place.
        ready: when the verifier was heard to have all of the prefix.
    """

    draft: Draft
    prefix: Prefix
    started: float
    shards: list[Shard]
    fetch: Fetch | None = None
    taken: int = 0
    ready: float | None = None
    ended: bool = False

    def agreed(self) -> int | None:
        """How far all shards have come with the committed text; None where one has another."""
        if not all(shard.follows(self.draft) for shard in self.shards):
            return None
        reached = (shard.reached for shard in self.shards if shard.reached is not None)
        return min([self.draft.committed, *reached])
