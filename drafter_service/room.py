"""Room in the KV pool for the drafter's sequences: it grows with them; beginnings are shared."""

from __future__ import annotations

from collections.abc import Iterable

from drafter_service.draft import Draft
from slipstream.engine.kv_pool import KvPool


class Room:
    """Owned by the engine's thread.

    Args:
        share: whether what one sequence computed may be the beginning of another.
        ahead: positions that a sequence gets at once beyond those that it needs, where there are
            so many.

    Attributes:
        shared_tokens: positions that were not computed because they were there.
    """

    def __init__(self, pool: KvPool, *, share: bool = False, ahead: int = 64) -> None:
        self._pool = pool
        self._share, self._ahead = share, ahead
        self.shared_tokens = 0

    def reserve(self, draft: Draft, tokens: int | None = None, spare: int = 0) -> bool:
        """Whether the sequence has room for so many positions; None: for all it may have now.

        Takes what is missing where there is some.

        Args:
            spare: blocks that are to be left where the sequence has none yet.
        """
        sequence = draft.sequence
        if tokens is None:
            tokens = max(len(sequence), min(draft.committed + draft.window, draft.max_length))
        if sequence.table is None:
            return self._begin(draft, tokens, spare)
        if tokens <= sequence.table.capacity:
            return True
        for wanted in (min(tokens + self._ahead, draft.max_length), tokens):
            table = self._pool.extend(sequence.table, wanted)
            if table is not None:
                sequence.table = table
                return True
        return False

    def _begin(self, draft: Draft, tokens: int, spare: int) -> bool:
        if self._pool.blocks_for(tokens) + spare > self._pool.num_free:
            return False
        sequence, prefix = draft.sequence, None
        if self._share and draft.own_context:
            prefix = self._pool.adopt(sequence.chain, len(sequence) - 1)
        sequence.table = self._pool.allocate(tokens, prefix)
        if sequence.table is None:
            if prefix is not None:
                self._pool.release(prefix)
            return False
        if prefix is not None:
            sequence.computed = prefix.capacity
            self.shared_tokens += prefix.capacity
        return True

    def publish(self, draft: Draft) -> None:
        """Lets others begin with what the sequence has computed of the committed text."""
        sequence = draft.sequence
        if self._share and draft.own_context and sequence.table is not None:
            settled = min(sequence.computed, draft.committed)
            self._pool.publish(sequence.table, sequence.chain, settled)

    @staticmethod
    def last_used(drafts: Iterable[Draft]) -> Draft | None:
        """The sequence with room of its own whose last pass is the longest ago."""
        able = (d for d in drafts if d.sequence.table and not d.in_flight and not d.loading)
        return min(able, key=lambda d: d.last_pass, default=None)
