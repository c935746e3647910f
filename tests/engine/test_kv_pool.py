"""The KV pool under any sequence of requests: no block twice, nothing lost, nothing overwritten."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from slipstream.core.prefix import PrefixChain
from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable, KvPool
from tests.engine.pool_machine import BLOCKS, PoolMachine, small_pool

TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def _computed(pool: KvPool, chain: PrefixChain) -> BlockTable:
    """A sequence all of whose full blocks are computed and published."""
    table = pool.allocate(len(chain))
    assert table is not None
    pool.publish(table, chain, len(chain))
    return table


def _text(*kinds: int) -> PrefixChain:
    return PrefixChain("model", [kind for kind in kinds for _ in range(BLOCK_TOKENS)])


def _cached(pool: KvPool, chain: PrefixChain) -> int:
    """How many blocks of a sequence are there; asking makes them the last used."""
    table = pool.adopt(chain, len(chain))
    if table is None:
        return 0
    pool.release(table)
    return len(table.blocks)


def test_what_was_used_least_recently_goes_first() -> None:
    """Of three cached sequences the one that was adopted again outlives the two that were not."""
    pool = small_pool()
    texts = [_text(kind, kind, kind, kind) for kind in range(3)]
    for text in texts:
        pool.release(_computed(pool, text))
    assert _cached(pool, texts[0]) == 4
    assert pool.num_cached == pool.num_free == BLOCKS
    assert pool.allocate(8 * BLOCK_TOKENS) is not None
    assert [_cached(pool, text) for text in texts] == [4, 0, 0]
    assert pool.num_evicted == 8


def test_the_end_of_a_sequence_goes_before_its_beginning() -> None:
    """Where a part of a sequence must go, what stays is still of use: its beginning."""
    pool = small_pool()
    text = _text(*range(BLOCKS))
    pool.release(_computed(pool, text))
    for left in (9, 5, 1):
        table = pool.allocate((BLOCKS - left) * BLOCK_TOKENS)
        assert table is not None
        assert _cached(pool, text) == left
        pool.release(table)


def test_free_blocks_are_used_before_cached_ones() -> None:
    """Nothing is evicted while there are blocks that are of no use to anybody."""
    pool = small_pool()
    text = _text(1, 2, 3, 4)
    pool.release(_computed(pool, text))
    assert pool.allocate(8 * BLOCK_TOKENS) is not None
    assert _cached(pool, text) == 4
    assert pool.num_evicted == 0


def test_at_most_what_was_asked_for_and_in_whole_multiples() -> None:
    """A run of shared blocks ends before `most`, and at a multiple where one is asked for."""
    pool = small_pool()
    text = _text(1, 2, 3, 4, 5)
    held = _computed(pool, text)
    for most, multiple, blocks in (
        (80, 16, 5), (79, 16, 4), (1000, 16, 5), (80, 32, 4), (63, 32, 2), (80, 64, 4), (63, 64, 0),
    ):  # fmt: skip
        table = pool.adopt(text, most, multiple)
        assert (() if table is None else table.blocks) == held.blocks[:blocks]


def test_another_history_or_salt_is_another_block() -> None:
    """The same tokens after other ones, for another model or tenant, are never taken for these."""
    pool = small_pool()
    pool.release(_computed(pool, _text(1, 2, 3)))
    assert _cached(pool, _text(0, 2, 3)) == 0
    assert _cached(pool, PrefixChain("other", [1] * BLOCK_TOKENS)) == 0
    assert _cached(pool, _text(1, 2, 0)) == 2


def test_the_same_block_computed_twice_is_cached_once() -> None:
    """Of two equal sequences side by side one copy stays, and the other's blocks are free."""
    pool = small_pool()
    one, two = _computed(pool, _text(1, 2)), _computed(pool, _text(1, 2))
    assert set(one.blocks).isdisjoint(two.blocks)
    pool.release(two)
    assert pool.num_cached == 0
    pool.release(one)
    assert pool.num_cached == 2
    again = pool.adopt(_text(1, 2), 32)
    assert again is not None
    assert again.blocks == one.blocks
    others = pool.allocate((BLOCKS - 2) * BLOCK_TOKENS)
    assert others is not None
    pool.enter(others, 0, others.capacity)


def test_a_second_copy_takes_the_place_of_an_evicted_first() -> None:
    """A block that is still held when its equal is evicted can be found once it is released."""
    pool = small_pool(4)
    one, two = _computed(pool, _text(1, 2)), _computed(pool, _text(1, 2))
    pool.release(one)
    taken = pool.allocate(2 * BLOCK_TOKENS)
    assert taken is not None
    assert _cached(pool, _text(1, 2)) == 0
    pool.release(two)
    assert _cached(pool, _text(1, 2)) == 2


def test_writing_to_a_shared_block_is_noticed() -> None:
    """A published block can be found by others, so entering it again fails loudly."""
    pool = small_pool()
    table = _computed(pool, _text(1, 2))
    with pytest.raises(AssertionError, match="shared"):
        pool.enter(table, 20, 21)


def test_a_sequence_grows_in_place_beside_another() -> None:
    """Two sequences that begin in an empty pool both have room to grow without a gather."""
    pool = small_pool()
    tables = [pool.allocate(1), pool.allocate(1)]
    for tokens in range(1, 3 * BLOCK_TOKENS, 5):
        tables = [table and pool.extend(table, tokens) for table in tables]
        assert all(table is not None and table.start is not None for table in tables)


def test_everything_released_is_one_run_again() -> None:
    """After any order of releases the whole pool can be handed out in one contiguous piece."""
    pool = small_pool()
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
    pool = small_pool()
    table, other = pool.allocate(20), pool.allocate(20)
    assert table is not None
    assert other is not None
    pool.release(table)
    with pytest.raises(AssertionError, match="twice"):
        pool.release(table)


def test_size_is_what_a_block_says_it_costs() -> None:
    """Bytes of a block times blocks is the memory that the tensors take, scratch block aside."""
    pool = small_pool(5)
    each = KvPool.bytes_per_block(2, 1, 2, torch.float32)
    held = sum(t.numel() * t.element_size() for t in (*pool.keys, *pool.values))
    assert held == each * 6


def test_blocks_are_held_by_their_names() -> None:
    """The longest run of known names from the first on, whoever holds them or nobody; held, they
    do not give way, and released they are cache again."""
    pool = small_pool()
    text = _text(1, 2, 3, 4)
    names = [text.at(BLOCK_TOKENS * i).hash for i in range(1, 5)]
    assert pool.hold(names) is None
    running = pool.allocate(len(text))
    assert running is not None
    pool.publish(running, text, 2 * BLOCK_TOKENS)
    assert pool.count(names) == 2
    held = pool.hold(names)
    assert held is not None
    assert held.blocks == running.blocks[:2]
    assert pool.count([bytes(16), *names]) == 0
    pool.release(running)
    assert (pool.num_used, pool.num_cached) == (2, 0)
    pool.forget()
    assert pool.count(names) == 2
    pool.release(held)
    assert (pool.num_used, pool.num_cached) == (0, 2)
    pool.forget()
    assert pool.hold(names) is None
