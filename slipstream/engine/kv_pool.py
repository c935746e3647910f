"""The paged KV pool: memory for keys and values, handed out and shared in blocks of tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from slipstream.core.prefix import PrefixChain
from slipstream.engine.free_runs import FreeRuns

BLOCK_TOKENS = 16
# Block 0 is nobody's: rows that only pad a batch write there.
SCRATCH_SLOT = 0


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Where one sequence's tokens live in the pool. Immutable; given back with `release`.

    Blocks at its beginning may be shared with other tables; those are never written again.

    Attributes:
        blocks: block numbers in order of position.
        slots: int64 [len(blocks) * BLOCK_TOKENS], the slot of each position.
        address: of the data of `slots`, for compiled kernels.
        start: first slot where the blocks follow one another in memory, else None. Such a
            sequence is read as a view of the pool; another one is gathered.
    """

    blocks: tuple[int, ...]
    slots: torch.Tensor
    address: int
    start: int | None

    @property
    def capacity(self) -> int:
        return len(self.blocks) * BLOCK_TOKENS


class KvPool:
    """Keys and values of all sequences of one engine. Owned by the engine's thread.

    A full block has a name: the prefix that ends with it (`slipstream.core.prefix`), and so its
    tokens, all tokens before it, model and salt. Named blocks are shared by whoever has the same
    prefix. One that nobody holds any more is kept as cache, until its room is needed: least
    recently used first, and of one sequence the last block first, because a block is of use only
    together with those before it.

    Args:
        num_layers: attention layers that are kept, each with its own keys and values.
        num_blocks: usable blocks of BLOCK_TOKENS tokens, beside the scratch block.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        slots = (num_blocks + 1) * BLOCK_TOKENS
        # Not zeroed as a whole: the system gives pages when blocks are first used.
        self._kv = torch.empty(
            (num_layers, 2, slots, num_kv_heads, head_dim), dtype=dtype, device=device
        )
        self._kv[:, :, :BLOCK_TOKENS].zero_()
        self.keys = [layer[0] for layer in self._kv]
        self.values = [layer[1] for layer in self._kv]
        # Where each layer's keys and values begin, for compiled kernels.
        self.addresses = [(layer[0].data_ptr(), layer[1].data_ptr()) for layer in self._kv]
        self.num_kv_heads, self.head_dim, self.dtype = num_kv_heads, head_dim, dtype
        self.num_blocks = num_blocks
        self._every_slot = torch.arange(slots, device=device)
        self._free = FreeRuns(1, num_blocks)
        self._holders = [0] * (num_blocks + 1)
        self._names: dict[int, bytes] = {}
        # Two sequences may have computed the same block; one of the two is found by its name.
        self._by_name: dict[bytes, int] = {}
        # Named blocks that nobody holds, least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()
        self.num_evicted = 0

    @staticmethod
    def bytes_per_block(
        num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> int:
        return num_layers * 2 * BLOCK_TOKENS * num_kv_heads * head_dim * dtype.itemsize

    @staticmethod
    def blocks_for(tokens: int) -> int:
        return -(-tokens // BLOCK_TOKENS)

    @property
    def total_bytes(self) -> int:
        """Of all blocks, whether or not they were ever used."""
        return self._kv.numel() * self._kv.element_size()

    @property
    def num_free(self) -> int:
        """Blocks that can be had: free ones, and cached ones that nobody holds."""
        return len(self._free) + len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks with a name that nobody holds."""
        return len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - self.num_free

    def allocate(self, tokens: int, prefix: BlockTable | None = None) -> BlockTable | None:
        """Room for `tokens` tokens, contiguous where possible; None where there is too little.

        The memory is as its last owner left it until `enter`.

        Args:
            prefix: from `adopt`, becomes its beginning and is taken over; where there is too little
                room it stays the caller's.
        """
        return self.extend(prefix or self._table(()), tokens)

    def extend(self, table: BlockTable, tokens: int) -> BlockTable | None:
        """A table with room for at least `tokens` tokens, which replaces `table`.

        Returns:
            None where there is too little room; `table` is then as it was.
        """
        need = self.blocks_for(tokens) - len(table.blocks)
        if need <= 0:
            return table
        if need > self.num_free:
            return None
        self._evict(need - len(self._free))
        more = self._free.take(need, table.blocks[-1] if table.blocks else None)
        for block in more:
            self._holders[block] = 1
        return self._table(more, table)

    def adopt(
        self, chain: PrefixChain, most: int, multiple: int = BLOCK_TOKENS
    ) -> BlockTable | None:
        """A hold on the longest run of computed blocks that begin a sequence, if there is one.

        Args:
            chain: names the sequence.
            most: tokens that the run may have. At least one position of a sequence is to be
                computed, else there are no logits.
            multiple: of which the run's tokens are one; itself one of BLOCK_TOKENS.
        """
        blocks = self._computed(chain, 0, most, multiple)
        if not blocks:
            return None
        self._hold(blocks)
        return self._table(blocks)

    def hold(self, names: Sequence[bytes]) -> BlockTable | None:
        """A hold on the longest run of blocks with these names; None where there is not one.

        Args:
            names: of a sequence's blocks, from its first on.
        """
        blocks = [self._by_name[name] for name in names[: self.count(names)]]
        if not blocks:
            return None
        self._hold(blocks)
        return self._table(blocks)

    def count(self, names: Sequence[bytes]) -> int:
        """How many blocks `hold` would find."""
        return next((i for i, name in enumerate(names) if name not in self._by_name), len(names))

    def exchange(
        self,
        table: BlockTable,
        chain: PrefixChain,
        start: int,
        most: int,
        multiple: int = BLOCK_TOKENS,
    ) -> tuple[BlockTable, int]:
        """Puts blocks that others computed in place of empty ones from position `start` on.

        Args:
            start: what is before it is computed, nothing behind it.
            chain, most, multiple: as of `adopt`; `most` and `multiple` count from position 0.

        Returns:
            The table, which replaces `table`, and how many positions were found.
        """
        found = [] if start % BLOCK_TOKENS else self._computed(chain, start, most, multiple)
        if not found:
            return table, 0
        first = start // BLOCK_TOKENS
        last = first + len(found)
        self._hold(found)
        self.release(self._table(table.blocks[first:last]))
        blocks = (*table.blocks[:first], *found, *table.blocks[last:])
        return self._table(blocks), len(found) * BLOCK_TOKENS

    def _computed(self, chain: PrefixChain, start: int, most: int, multiple: int) -> list[int]:
        """The longest run of named blocks from position `start` on that ends at a `multiple`."""
        blocks: list[int] = []
        for end in range(start + BLOCK_TOKENS, min(most, len(chain)) + 1, BLOCK_TOKENS):
            block = self._by_name.get(chain.at(end).hash)
            if block is None:
                break
            blocks.append(block)
        over = (start // BLOCK_TOKENS + len(blocks)) % (multiple // BLOCK_TOKENS)
        return blocks[: max(0, len(blocks) - over)]

    def publish(self, table: BlockTable, chain: PrefixChain, computed: int) -> None:
        """Names the full blocks among the first `computed` positions, so that others adopt them.

        From then on they must not be written: only positions that are settled count. Costs what is
        new since the last time.

        Args:
            chain: names the sequence.
        """
        for index in reversed(range(computed // BLOCK_TOKENS)):
            block = table.blocks[index]
            if block in self._names:
                return
            name = chain.at((index + 1) * BLOCK_TOKENS).hash
            self._names[block] = name
            self._by_name.setdefault(name, block)

    def enter(self, table: BlockTable, start: int, end: int) -> None:
        """Call before positions `start` to `end` are written: clears the blocks they enter.

        Attention reads up to the end of a block under a mask, and a masked key still multiplies
        its weight of zero with whatever is there: a previous owner's infinity would make a NaN.
        Cleared only now, because most sequences never use all the room that they reserve.
        """
        assert end <= table.capacity, "what lies beyond a table is somebody else's"
        assert not any(
            block in self._names
            for block in table.blocks[start // BLOCK_TOKENS : self.blocks_for(end)]
        ), "a shared block is to be written"
        first, last = self.blocks_for(start) * BLOCK_TOKENS, self.blocks_for(end) * BLOCK_TOKENS
        if first == last:
            return
        if table.start is None:
            self._kv.index_fill_(2, table.slots[first:last], 0)
        else:
            self._kv[:, :, table.start + first : table.start + last].zero_()

    def retain(self, table: BlockTable, tokens: int) -> BlockTable:
        """Another hold on the blocks of the first `tokens` positions, to be released by itself."""
        blocks = table.blocks[: self.blocks_for(tokens)]
        self._hold(blocks)
        return BlockTable(
            blocks, table.slots[: len(blocks) * BLOCK_TOKENS], table.address, table.start
        )

    def copy_rows(self, table: BlockTable, start: int, end: int) -> torch.Tensor:
        """A copy of keys and values at positions: [layers, 2, end - start, kv_heads, head_dim]."""
        return self._kv.index_select(2, table.slots[start:end])

    def put_rows(self, table: BlockTable, start: int, rows: torch.Tensor) -> None:
        """Keys and values, shaped as `copy_rows` gives them, from position `start` on."""
        self._kv.index_copy_(2, table.slots[start : start + rows.shape[2]], rows)

    def release(self, table: BlockTable) -> None:
        """Ends a hold. Blocks that nobody else holds are cache if they can be found, else free.

        The table must not be used again.
        """
        free: list[int] = []
        for block in reversed(table.blocks):
            holders = self._holders[block] - 1
            assert holders >= 0, "block released twice"
            self._holders[block] = holders
            if holders:
                continue
            name = self._names.get(block)
            if name is not None and self._by_name.setdefault(name, block) == block:
                self._idle[block] = None
            else:
                self._names.pop(block, None)
                free.append(block)
        self._free.give(reversed(free))

    def forget(self) -> None:
        """Frees what is cached and held by nobody."""
        self._evict(len(self._idle))

    def _evict(self, count: int) -> None:
        evicted: list[int] = []
        for _ in range(count):
            block, _ = self._idle.popitem(last=False)
            del self._by_name[self._names.pop(block)]
            evicted.append(block)
        self.num_evicted += len(evicted)
        self._free.give(reversed(evicted))

    def _hold(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            if not self._holders[block]:
                del self._idle[block]
            self._holders[block] += 1

    def _table(self, blocks: Sequence[int], before: BlockTable | None = None) -> BlockTable:
        """The table of `before` and then `blocks`."""
        every = (*before.blocks, *blocks) if before else tuple(blocks)
        begin = every[0] if every else 0
        if every == tuple(range(begin, begin + len(every))):
            start = begin * BLOCK_TOKENS
            slots = self._every_slot[start : start + len(every) * BLOCK_TOKENS]
            return BlockTable(every, slots, slots.data_ptr(), start)
        slots = self._every_slot.view(-1, BLOCK_TOKENS)[list(blocks)].view(-1)
        if before:
            slots = torch.cat((before.slots, slots))
        return BlockTable(every, slots, slots.data_ptr(), None)
