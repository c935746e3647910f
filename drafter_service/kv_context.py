"""Drafting on the verifier's keys and values: fetched by handle instead of computed.

A drafter that skips sublayers computes a context of its own that drifts from the full model's. The
full model's keys and values for the layers that it keeps are a better context, and it need not
prefill. Whatever goes wrong, it computes the rest itself: tokens never depend on it.

A drafter in shards is one drafter: each shard fetches the layers that it keeps, what all of them
have counts, and the first that fails ends it for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from drafter_service.draft import Draft, Key, Part
from drafter_service.kv_fetch import Arrival, Fetch, Post
from drafter_service.kv_load import KvCounters, Load, Shard
from drafter_service.kv_source import Source, Want
from drafter_service.room import Room
from slipstream.core.draft import Commit
from slipstream.engine.runner import ModelRunner

KvMode = Literal["own", "prompt", "commit"]
_LEAST_WAIT_SECONDS = 0.5
# What a position is taken to cost to prefill until the drafter has prefilled some.
_GUESSED_PREFILL_SECONDS = 0.001


class Others(Protocol):
    """The other shards of a drafter, each of which fetches its own layers.

    Attributes:
        there: whether they can be reached; `count`, how many they are.
    """

    @property
    def there(self) -> bool: ...

    @property
    def count(self) -> int: ...

    def fetch(self, draft: Draft, address: str, want: Want) -> None:
        """Begins; what comes is heard of as arrivals of shard 1, 2, ..."""

    def take(self, draft: Draft, computed: int, end: int) -> None:
        """As `Fetch.take`, between the same two passes as here."""

    def stop(self, draft: Draft) -> None:
        """As `Fetch.stop`."""


class KvContext(Part):
    """Fetches the context of sequences from the verifiers that they are of.

    Args:
        mode: own computes it; prompt fetches what is there when a sequence is opened; commit also
            takes over every committed position afterwards.
        least_wait: seconds that a pull always gets.
        others: the other shards, where there are any.
    """

    def __init__(
        self,
        runner: ModelRunner,
        mode: KvMode,
        *,
        share_memory: bool = True,
        least_wait: float = _LEAST_WAIT_SECONDS,
        others: Others | None = None,
    ) -> None:
        self.mode = mode
        self.counters = KvCounters()
        self._runner = runner
        self._share_memory = share_memory
        self._least_wait = least_wait
        self._others = others
        self._room = Room(runner.pool)
        self._loop = asyncio.get_running_loop()
        self._sources: dict[int, Source] = {}
        self._addresses: dict[int, str] = {}
        self._loads: dict[Key, Load] = {}
        self._post: Post
        self._prefill_seconds: Callable[[], float]

    # ---- the event loop --------------------------------------------------------------------

    def attach(self, post: Post, prefill_seconds: Callable[[], float]) -> None:
        """Before the first sequence is opened.

        Args:
            post: runs an action on the engine's thread between two steps.
            prefill_seconds: of the drafter's own prefill for one position, as measured; 0 unknown.
        """
        self._post, self._prefill_seconds = post, prefill_seconds

    def connect(self, connection: int, address: str) -> None:
        """A verifier is there; empty where it gives no keys and values away."""
        if address and self._wanted:
            source = Source(self._runner, address, share_memory=self._share_memory)
            self._sources[connection], self._addresses[connection] = source, address

    @property
    def _wanted(self) -> bool:
        needed = bool(self._runner.loaded.kv_layers) or self._others is not None
        return self.mode != "own" and needed

    async def disconnect(self, connection: int) -> None:
        """Ends what is under way and gives leases back."""
        source = self._sources.pop(connection, None)
        if source is not None:
            del self._addresses[connection]
            await source.close()

    # ---- the engine's thread ---------------------------------------------------------------

    def taken(self, draft: Draft) -> int | None:
        """Positions of a sequence that came from its verifier; None where no more are to come."""
        load = self._loads.get(draft.key)
        return None if load is None or self.mode != "commit" else load.taken

    def opened(self, draft: Draft) -> None:
        address = self._addresses.get(draft.key.connection)
        sequence, length = draft.sequence, len(draft.sequence) - 1
        others = self._others
        if length < 1 or not self._wanted or (others is not None and not others.there):
            return
        if address is None:
            self.counters.fallbacks["not_offered"] += 1
            return
        draft.own_context = False
        if not self._room.reserve(draft):
            draft.own_context = True
            self.counters.fallbacks["no_room"] += 1
            return
        # The last position is the drafter's own: its first draft comes from there.
        prefix = sequence.chain.at(length)
        shards = [Shard() for _ in range(1 + (others.count if others else 0))]
        load = Load(draft, prefix, time.monotonic(), shards)
        self._loads[draft.key] = load
        draft.loading = True
        want = Want(draft.key.sequence_id, prefix, self.mode == "commit")
        load.fetch = Fetch(
            self._runner,
            sequence,
            draft.max_length,
            want,
            source=partial(self._sources.get, draft.key.connection),
            loop=self._loop,
            post=self._post,
            heard=partial(self.heard, draft, 0),
        )
        if others is not None:
            others.fetch(draft, address, want)
        load.fetch.start()

    def committed(self, draft: Draft, command: Commit, lost: int) -> None:  # noqa: ARG002 a hook
        load = self._loads.get(draft.key)
        if load is None:
            return
        self._advance(load)
        if draft.loading and load.ready is None:
            # From now on drafts are missed. Waiting as long as computing would take costs at most
            # twice the better of the two.
            load.ready = time.monotonic()
            missing = load.prefix.length - draft.sequence.computed
            each = self._prefill_seconds() or _GUESSED_PREFILL_SECONDS
            wait = max(self._least_wait, missing * each)
            give_up = partial(self._post, partial(self._too_slow, load))
            self._loop.call_soon_threadsafe(self._loop.call_later, wait, give_up)

    def landed(self, draft: Draft) -> None:
        load = self._loads.get(draft.key)
        if load is not None:
            self._advance(load)

    def closed(self, draft: Draft) -> None:
        load = self._loads.get(draft.key)
        if load is not None:
            self._end(load)

    def heard(self, draft: Draft, shard: int, arrival: Arrival) -> None:
        """Of a shard's fetch; this process is shard 0."""
        load = self._loads.get(draft.key)
        if load is None or load.draft is not draft:
            return
        if arrival.failure:
            self._give_up(load, arrival.failure)
            return
        if arrival.needless:
            load.shards[shard].reached = None
        if arrival.prefix is not None:
            load.shards[shard].unknown.append(arrival.prefix)
            self._count(arrival, first=arrival.prefix.length <= load.prefix.length)
        self._advance(load)

    def _advance(self, load: Load) -> None:
        """Takes what all shards have of the committed text; not in the midst of a pass."""
        draft, end = load.draft, load.agreed()
        if end is None:
            self._give_up(load, "not_found")
            return
        if draft.loading:
            # These were written as they came.
            draft.sequence.computed = load.taken = min(end, load.prefix.length)
            if load.taken == load.prefix.length:
                self._loaded(load)
            return
        # The last position is computed here for the draft behind it, over whatever was taken.
        end = min(end, len(draft.sequence) - 1)
        if end > load.taken and not draft.in_flight:
            self._take(load, end)

    def _take(self, load: Load, end: int) -> None:
        sequence, fetch = load.draft.sequence, load.fetch
        assert fetch is not None
        if not self._room.reserve(load.draft, end):
            self._give_up(load, "no_room")
            return
        self.counters.refreshed_positions += end - load.taken
        # What was taken is in place in every layer, whatever else is to be computed again.
        sequence.computed = max(sequence.computed, load.taken)
        fetch.take(sequence.computed, end)
        if self._others is not None:
            self._others.take(load.draft, sequence.computed, end)
        load.taken = end
        sequence.computed = max(sequence.computed, end)

    def _loaded(self, load: Load) -> None:
        now, counters = time.monotonic(), self.counters
        load.draft.loading = False
        counters.pulls += 1
        counters.pulled_positions += load.taken
        counters.pull_seconds += now - load.started
        counters.pull_wait_seconds += now - (load.ready or now)
        if self.mode != "commit":
            self._end(load)

    def _too_slow(self, load: Load) -> None:
        if load.draft.loading and not load.ended:
            self._give_up(load, "slow")

    def _give_up(self, load: Load, reason: str) -> None:
        """No more comes for a sequence: what is missing the drafter computes itself."""
        self.counters.fallbacks[reason] += 1
        if load.draft.loading:
            self.counters.pulled_positions += load.taken
        if self._others is not None:
            self._others.stop(load.draft)
        self._end(load)

    def _end(self, load: Load) -> None:
        load.ended, load.draft.loading = True, False
        del self._loads[load.draft.key]
        if load.fetch is not None:
            load.fetch.stop()

    def _count(self, arrival: Arrival, *, first: bool) -> None:
        counters = self.counters
        if first:
            counters.pulled_bytes += arrival.size
            counters.shared_bytes += arrival.size if arrival.shared else 0
        else:
            counters.refreshed_bytes += arrival.size
