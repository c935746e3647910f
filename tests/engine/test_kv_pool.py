"""The KV pool under any sequence of requests: no block twice, nothing lost, nothing leaked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slipstream.engine.kv_pool import BLOCK_TOKENS, SCRATCH_SLOT, BlockTable, KvPool

BLOCKS = 12


def _pool(blocks: int = BLOCKS) -> KvPool:
    return KvPool(
        num_layers=2,
        num_blocks=blocks,
        num_kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def _longest_free_run(taken: set[int]) -> int:
    best = run = 0
    for block in range(1, BLOCKS + 1):
        run = 0 if block in taken else run + 1
        best = max(best, run)
    return best


class PoolMachine(RuleBasedStateMachine):
    """Allocates and releases at random beside a model that is nothing but a set of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = _pool()
        self.held: list[BlockTable] = []
        self.written: dict[BlockTable, int] = {}
        # Other holds on the first blocks of a table, and how many positions were written there.
        self.retained: list[tuple[BlockTable, int]] = []

    @property
    def taken(self) -> set[int]:
        tables = [*self.held, *(table for table, _ in self.retained)]
        return {block for table in tables for block in table.blocks}

    @rule(tokens=st.integers(1, (BLOCKS + 1) * BLOCK_TOKENS))
    def allocate(self, tokens: int) -> None:
        taken, need = self.taken, KvPool.blocks_for(tokens)
        table = self.pool.allocate(tokens)
        assert (table is not None) == (need <= BLOCKS - len(taken))
        if table is None:
            return
        assert need * BLOCK_TOKENS == table.capacity >= tokens > table.capacity - BLOCK_TOKENS
        assert len(set(table.blocks)) == need
        assert set(table.blocks) <= set(range(1, BLOCKS + 1)) - taken
        offsets = torch.arange(BLOCK_TOKENS)
        wanted = torch.cat([block * BLOCK_TOKENS + offsets for block in table.blocks])
        assert torch.equal(table.slots, wanted)
        contiguous = list(table.blocks) == list(range(table.blocks[0], table.blocks[0] + need))
        if need <= _longest_free_run(taken):
            assert contiguous, "there was a run of free blocks long enough"
            assert table.start == table.slots[0]
        if table.start is not None:
            assert contiguous
            assert table.start == table.slots[0]
        self.written[table] = 0
        self.held.append(table)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.held))
        start = self.written[table]
        if start == table.capacity:
            return
        end = data.draw(st.integers(start + 1, table.capacity))
        self.pool.enter(table, start, end)
        padded = KvPool.blocks_for(end) * BLOCK_TOKENS
        for layer in (*self.pool.keys, *self.pool.values):
            seen = layer[table.slots[:padded]]
            assert not seen[start:].any(), "memory of an earlier owner"
            assert (seen[:start] == 1).all(), "what was written is gone"
            layer[table.slots[start:end]] = 1
        self.written[table] = end

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        table = self.held.pop(index)
        kept = {block for other, _ in self.retained for block in other.blocks}
        self.spoil([block for block in table.blocks if block not in kept])
        self.pool.release(table)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.held))
        tokens = data.draw(st.integers(0, table.capacity))
        other = self.pool.retain(table, tokens)
        assert other.blocks == table.blocks[: KvPool.blocks_for(tokens)]
        assert torch.equal(other.slots, table.slots[: other.capacity])
        self.retained.append((other, min(self.written[table], other.capacity)))

    @precondition(lambda self: self.retained)
    @rule(data=st.data())
    def release_retained(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.retained) - 1))
        table, written = self.retained.pop(index)
        for layer in (*self.pool.keys, *self.pool.values):
            assert (layer[table.slots[:written]] == 1).all(), "the blocks were not kept"
        self.spoil([block for block in table.blocks if block not in self.taken])
        self.pool.release(table)

    def spoil(self, blocks: list[int]) -> None:
        """What every owner may leave behind, and the worst it can be."""
        for layer in (*self.pool.keys, *self.pool.values):
            for block in blocks:
                layer[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] = float("nan")

    @invariant()
    def accounts_balance(self) -> None:
        assert self.pool.num_used == len(self.taken)
        assert self.pool.num_free == BLOCKS - len(self.taken)
        assert self.pool.num_blocks == BLOCKS

    @invariant()
    def scratch_is_nobodys(self) -> None:
        for layer in (*self.pool.keys, *self.pool.values):
            assert layer[SCRATCH_SLOT : SCRATCH_SLOT + BLOCK_TOKENS].isfinite().all()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_everything_released_is_one_run_again() -> None:
    """After any order of releases the whole pool can be handed out in one contiguous piece."""
    pool = _pool()
    tables = [pool.allocate(BLOCK_TOKENS) for _ in range(BLOCKS)]
    for index in (5, 0, 11, 6, 1, 10, 4, 3, 2, 9, 7, 8):
        table = tables[index]
        assert table is not None
        pool.release(table)
    whole = pool.allocate(BLOCKS * BLOCK_TOKENS)
    assert whole is not None
    assert whole.start == BLOCK_TOKENS


def test_releasing_twice_is_noticed() -> None:
    """A table given back twice fails loudly, before its blocks get two owners."""
    pool = _pool()
    table, other = pool.allocate(20), pool.allocate(20)
    assert table is not None
    assert other is not None
    pool.release(table)
    with pytest.raises(AssertionError, match="twice"):
        pool.release(table)


def test_size_is_what_a_block_says_it_costs() -> None:
    """Bytes of a block times blocks is the memory that the tensors take, scratch block aside."""
    pool = _pool(5)
    each = KvPool.bytes_per_block(2, 1, 2, torch.float32)
    held = sum(t.numel() * t.element_size() for t in (*pool.keys, *pool.values))
    assert held == each * 6
