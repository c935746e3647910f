"""Room in the KV pool for running sequences: taken at the start, grown by blocks, given back."""

from __future__ import annotations

from slipstream.engine.kv_pool import BLOCK_TOKENS, KvPool
from verifier_service.generation import Generation
from verifier_service.kv_holder import KvHolder
from verifier_service.plan import Limits

# Room ahead of a sequence, where there is some: drafts need it, and blocks that are taken together
# mostly lie together.
_AHEAD_TOKENS = 4 * BLOCK_TOKENS


class Rooms:
    """Owned by the engine's thread.

    Cached prefixes give way by themselves; leases of sequences that ended do where there is not
    enough without.
    """

    def __init__(self, pool: KvPool, kv: KvHolder, limits: Limits) -> None:
        self._pool = pool
        self._kv = kv
        self._canonical = limits.canonical
        # Of what others computed, a sequence takes whole multiples of so many tokens.
        self._multiple = limits.prefill_chunk if limits.canonical else BLOCK_TOKENS
        self._chunk = limits.prefill_chunk
        self._drafts = limits.max_drafts

    def take(self, generation: Generation, spare: int) -> bool:
        """Room for all tokens that a sequence has, beginning with what is cached of them.

        Args:
            spare: blocks that must be left for those that run.

        Returns:
            Whether there was enough.
        """
        sequence, pool = generation.sequence, self._pool
        prefix = pool.adopt(sequence.chain, self._shareable(generation), self._multiple)
        held = 0 if prefix is None else len(prefix.blocks)
        tokens = self._fitting(generation, held, spare)
        table = pool.allocate(tokens, prefix) if tokens else None
        if table is None:
            if prefix is not None:
                pool.release(prefix)
            return False
        sequence.table, sequence.computed = table, held * BLOCK_TOKENS
        if not generation.started:
            generation.cached = min(sequence.computed, sequence.num_prompt)
        return True

    def share(self, generation: Generation) -> None:
        """Before the next piece of a prompt: takes what others have computed of it meanwhile."""
        sequence = generation.sequence
        assert sequence.table is not None, "it has no place"
        sequence.table, found = self._pool.exchange(
            sequence.table,
            sequence.chain,
            sequence.computed,
            self._shareable(generation),
            self._multiple,
        )
        sequence.computed += found
        if not generation.num_new:
            generation.cached = min(generation.cached + found, sequence.num_prompt)

    def grow(self, generation: Generation) -> bool:
        """Makes sure that the next token of a sequence has room, and drafts where there is some.

        Returns:
            False where there is none, not even for the token.
        """
        sequence = generation.sequence
        table = sequence.table
        assert table is not None, "it has no place"
        if table.capacity < min(len(sequence) + self._drafts, generation.max_length):
            tokens = self._fitting(generation, len(table.blocks), 0)
            larger = self._pool.extend(table, tokens) if tokens else None
            if larger is None:
                return False
            sequence.table = larger
        return True

    def publish(self, generation: Generation) -> None:
        """Lets others share what is computed of a sequence.

        Where a row's bits depend on the shape that it was computed in, that is whole chunks of the
        prompt only.
        """
        sequence = generation.sequence
        computed = sequence.computed
        if self._canonical:
            computed = min(computed, sequence.num_prompt)
            computed -= computed % self._chunk
        assert sequence.table is not None, "it has no place"
        self._pool.publish(sequence.table, sequence.chain, computed)

    def free(self, generation: Generation) -> None:
        """Gives back all that a sequence has."""
        sequence = generation.sequence
        assert sequence.table is not None, "it has no place"
        self._pool.release(sequence.table)
        sequence.table = None

    def _shareable(self, generation: Generation) -> int:
        """How many of a sequence's positions may be what others computed.

        Not the last one: its logits are wanted. Where bits depend on the shape, none of its output:
        in a longer prompt the same tokens were rows of a chunk.
        """
        sequence = generation.sequence
        return min(len(sequence) - 1, sequence.num_prompt if self._canonical else len(sequence))

    def _fitting(self, generation: Generation, held: int, spare: int) -> int:
        """For how many tokens a sequence that holds `held` blocks gets room; 0: not for enough."""
        pool, length = self._pool, len(generation.sequence)
        ahead = min(length + _AHEAD_TOKENS, generation.max_length)
        if pool.blocks_for(ahead) - held + spare <= pool.num_free:
            return ahead
        need = pool.blocks_for(length) - held + spare
        # Leases are kept where they could not make enough room.
        if need > pool.num_free + self._kv.num_kept:
            return 0
        while need > pool.num_free:
            if not self._kv.give_up():
                return 0
        return length
