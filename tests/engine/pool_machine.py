"""The KV pool beside a slow model of it, driven at random by Hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slipstream.core.prefix import PrefixChain
from slipstream.engine.kv_pool import BLOCK_TOKENS, SCRATCH_SLOT, BlockTable, KvPool

BLOCKS = 12


def small_pool(blocks: int = BLOCKS) -> KvPool:
    return KvPool(
        num_layers=2,
        num_blocks=blocks,
        num_kv_heads=1,
        head_dim=2,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


@dataclass(eq=False)
class Held:
    """A sequence in the pool. What stands at a position is the name of the text up to there."""

    chain: PrefixChain
    table: BlockTable
    written: int = 0
    # The sequence itself, no other hold on its blocks.
    owner: bool = True

    def content(self) -> torch.Tensor:
        names = (self.chain.at(end + 1).hash for end in range(self.written))
        return torch.tensor([float(int.from_bytes(name[:3], "little")) for name in names])


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, grow, share and go at random.

    The model: who holds what, which block is found by which name, and cached blocks in the order in
    which they were last used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = small_pool()
        self.held: list[Held] = []
        self.names: dict[int, bytes] = {}
        self.found: dict[bytes, int] = {}
        self.idle: list[int] = []

    @property
    def taken(self) -> set[int]:
        return {block for each in self.held for block in each.table.blocks}

    def make_room(self, need: int) -> None:
        """What the pool must have evicted to give `need` blocks, and no more than that."""
        for _ in range(need - (BLOCKS - len(self.taken) - len(self.idle))):
            self.forget(self.idle.pop(0))

    def forget(self, block: int) -> None:
        del self.found[self.names.pop(block)]

    # Texts of few kinds of blocks, so that many begin alike.
    @rule(
        text=st.lists(st.integers(0, 1), min_size=1, max_size=BLOCKS + 1), most=st.integers(0, 200)
    )
    def start(self, text: list[int], most: int) -> None:
        chain = PrefixChain("model", [kind for kind in text for _ in range(BLOCK_TOKENS)])
        known = 0
        while known < min(most, len(chain)) // BLOCK_TOKENS:
            if chain.at((known + 1) * BLOCK_TOKENS).hash not in self.found:
                break
            known += 1
        prefix = self.pool.adopt(chain, most)
        assert (0 if prefix is None else len(prefix.blocks)) == known
        mine = prefix.blocks if prefix else ()
        assert mine == tuple(
            self.found[chain.at((i + 1) * BLOCK_TOKENS).hash] for i in range(known)
        )
        self.idle = [block for block in self.idle if block not in mine]
        taken = self.taken | set(mine)
        table = self.pool.allocate(len(chain), prefix)
        need = len(text) - known
        assert (table is not None) == (need <= BLOCKS - len(taken))
        if prefix is not None:
            self.held.append(Held(chain, prefix, known * BLOCK_TOKENS))
        if table is None:
            return
        self.make_room(need)
        self.check_new(table, mine, len(chain))
        if prefix is not None:
            self.held.pop()
        self.held.append(Held(chain, table, known * BLOCK_TOKENS))

    def check_new(self, table: BlockTable, before: tuple[int, ...], tokens: int) -> None:
        assert KvPool.blocks_for(tokens) * BLOCK_TOKENS == table.capacity
        assert table.blocks[: len(before)] == before
        new = table.blocks[len(before) :]
        assert len(set(new)) == len(new)
        assert set(new) <= set(range(1, BLOCKS + 1)) - self.taken - set(self.idle)
        offsets = torch.arange(BLOCK_TOKENS)
        wanted = torch.cat([block * BLOCK_TOKENS + offsets for block in table.blocks])
        assert torch.equal(table.slots, wanted)
        assert table.address == table.slots.data_ptr()
        first = table.blocks[0]
        contiguous = table.blocks == tuple(range(first, first + len(table.blocks)))
        assert table.start == (table.slots[0] if contiguous else None)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=st.integers(1, 40))
    def extend(self, data: st.DataObject, more: int) -> None:
        each = data.draw(st.sampled_from([x for x in self.held if x.owner] or [None]))
        if each is None:
            return
        tokens = each.table.capacity + more
        need = KvPool.blocks_for(more)
        beside = each.table.blocks[-1] + 1
        free = set(range(1, BLOCKS + 1)) - self.taken - set(self.idle)
        table = self.pool.extend(each.table, tokens)
        assert (table is not None) == (need <= BLOCKS - len(self.taken))
        if table is None:
            return
        self.make_room(need)
        self.check_new(table, each.table.blocks, tokens)
        if beside in free:
            assert table.blocks[len(each.table.blocks)] == beside, "it could have grown in place"
        each.chain.extend([2] * (tokens - len(each.chain)))
        each.table = table

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.held))
        room = min(each.table.capacity, len(each.chain))
        if each.written == room or not each.owner:
            return
        start, table = each.written, each.table
        end = data.draw(st.integers(start + 1, room))
        self.pool.enter(table, start, end)
        padded = KvPool.blocks_for(end) * BLOCK_TOKENS
        each.written = end
        rows = each.content()[start:, None, None]
        for layer in (*self.pool.keys, *self.pool.values):
            assert not layer[table.slots[start:padded]].any(), "memory of an earlier owner"
            layer[table.slots[start:end]] = rows

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.held))
        self.pool.publish(each.table, each.chain, each.written)
        for index, block in enumerate(each.table.blocks[: each.written // BLOCK_TOKENS]):
            name = each.chain.at((index + 1) * BLOCK_TOKENS).hash
            assert self.names.setdefault(block, name) == name
            self.found.setdefault(name, block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(self.held))
        tokens = data.draw(st.integers(0, each.written))
        other = self.pool.retain(each.table, tokens)
        assert other.blocks == each.table.blocks[: KvPool.blocks_for(tokens)]
        assert torch.equal(other.slots, each.table.slots[: other.capacity])
        self.held.append(Held(each.chain, other, tokens, owner=False))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        each = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(each.table)
        for block in reversed(each.table.blocks):
            if block in self.taken:
                continue
            name = self.names.get(block)
            if name is not None and self.found.setdefault(name, block) == block:
                self.idle.append(block)
            else:
                self.names.pop(block, None)
                self.spoil(block)

    def spoil(self, block: int) -> None:
        """What every owner may leave behind, and the worst it can be."""
        for layer in (*self.pool.keys, *self.pool.values):
            layer[block * BLOCK_TOKENS : (block + 1) * BLOCK_TOKENS] = float("nan")

    @invariant()
    def accounts_balance(self) -> None:
        assert self.pool.num_used == len(self.taken)
        assert self.pool.num_free == BLOCKS - len(self.taken)
        assert self.pool.num_cached == len(self.idle)
        assert self.pool.num_blocks == BLOCKS

    @invariant()
    def everybody_reads_what_was_written(self) -> None:
        for each in self.held:
            wanted = each.content()
            for layer in (*self.pool.keys, *self.pool.values):
                seen = layer[each.table.slots[: each.written], 0]
                assert (seen == wanted[:, None]).all()

    @invariant()
    def scratch_is_nobodys(self) -> None:
        for layer in (*self.pool.keys, *self.pool.values):
            assert layer[SCRATCH_SLOT : SCRATCH_SLOT + BLOCK_TOKENS].isfinite().all()

    def teardown(self) -> None:
        """Nothing is lost: all that was held can be handed out again, in one piece."""
        for each in self.held:
            self.pool.release(each.table)
        assert self.pool.num_used == 0
        self.pool.forget()
        assert self.pool.num_cached == 0
        whole = self.pool.allocate(BLOCKS * BLOCK_TOKENS)
        assert whole is not None
        assert whole.start == BLOCK_TOKENS
