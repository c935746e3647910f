"""The paged KV pool: memory for keys and values, handed out in blocks of tokens."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

import torch

BLOCK_TOKENS = 16
# Block 0 is nobody's: rows that only pad a batch write there.
SCRATCH_SLOT = 0


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Where one sequence's tokens live in the pool. Immutable; given back with `release`.

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
        self._free: list[tuple[int, int]] = [(1, num_blocks)] if num_blocks else []
        self._num_free = num_blocks
        # Of blocks with several holders: how many there are beside the first.
        self._others: dict[int, int] = {}

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
        return self._num_free

    @property
    def num_used(self) -> int:
        return self.num_blocks - self._num_free

    def allocate(self, tokens: int) -> BlockTable | None:
        """Room for `tokens` tokens, contiguous where possible; None where there is too little.

        The memory is as its last owner left it until `enter`.
        """
        need = self.blocks_for(tokens)
        if need > self._num_free:
            return None
        fitting = [run for run in self._free if run[1] >= need]
        taken: list[int] = []
        if fitting:
            taken = self._take(min(fitting, key=lambda run: run[1]), need)
        while len(taken) < need:
            largest = max(self._free, key=lambda run: run[1])
            taken += self._take(largest, min(largest[1], need - len(taken)))
        self._num_free -= need
        offsets = torch.arange(BLOCK_TOKENS)
        slots = (torch.tensor(taken)[:, None] * BLOCK_TOKENS + offsets).reshape(-1)
        slots = slots.to(self._kv.device)
        start = taken[0] * BLOCK_TOKENS if fitting else None
        return BlockTable(tuple(taken), slots, slots.data_ptr(), start)

    def enter(self, table: BlockTable, start: int, end: int) -> None:
        """Call before positions `start` to `end` are written: clears the blocks they enter.

        Attention reads up to the end of a block under a mask, and a masked key still multiplies
        its weight of zero with whatever is there: a previous owner's infinity would make a NaN.
        Cleared only now, because most sequences never use all the room that they reserve.
        """
        first, last = self.blocks_for(start) * BLOCK_TOKENS, self.blocks_for(end) * BLOCK_TOKENS
        if first == last:
            return
        if table.start is None:
            self._kv.index_fill_(2, table.slots[first:last], 0)
        else:
            self._kv[:, :, table.start + first : table.start + last].zero_()

    def retain(self, table: BlockTable, tokens: int) -> BlockTable:
        """Another hold on the blocks of the first `tokens` positions, to be released by itself."""
        count = self.blocks_for(tokens)
        for block in table.blocks[:count]:
            self._others[block] = self._others.get(block, 0) + 1
        slots = table.slots[: count * BLOCK_TOKENS]
        return BlockTable(table.blocks[:count], slots, table.address, table.start)

    def copy_rows(self, table: BlockTable, start: int, end: int) -> torch.Tensor:
        """A copy of keys and values at positions: [layers, 2, end - start, kv_heads, head_dim]."""
        return self._kv.index_select(2, table.slots[start:end])

    def put_rows(self, table: BlockTable, start: int, rows: torch.Tensor) -> None:
        """Keys and values, shaped as `copy_rows` gives them, from position `start` on."""
        self._kv.index_copy_(2, table.slots[start : start + rows.shape[2]], rows)

    def release(self, table: BlockTable) -> None:
        """Ends a hold: blocks that nobody else holds are free. The table must not be used again."""
        for block in table.blocks:
            others = self._others.pop(block, 0)
            if others > 1:
                self._others[block] = others - 1
            if not others:
                insort(self._free, (block, 1))
                self._num_free += 1
        merged: list[tuple[int, int]] = []
        for start, length in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                assert not merged or sum(merged[-1]) < start, "block released twice"
                merged.append((start, length))
        self._free = merged

    def _take(self, run: tuple[int, int], count: int) -> list[int]:
        self._free.remove(run)
        if run[1] > count:
            insort(self._free, (run[0] + count, run[1] - count))
        return list(range(run[0], run[0] + count))
