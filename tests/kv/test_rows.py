"""Rows out of a pool and into another, for contiguous and scattered tables, layers and types."""

from __future__ import annotations

import pytest
import torch

from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable, KvPool
from slipstream.engine.kv_rows import as_tensor, read_rows, row_bytes, write_rows


def _pool(layers: int, dtype: torch.dtype) -> KvPool:
    pool = KvPool(
        num_layers=layers,
        num_blocks=8,
        num_kv_heads=2,
        head_dim=4,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    pool._kv.copy_(torch.arange(pool._kv.numel()).view(pool._kv.shape) % 251)
    return pool


def _table(pool: KvPool, *, scattered: bool) -> BlockTable:
    """Three blocks, one behind the other or not."""
    if not scattered:
        table = pool.allocate(3 * BLOCK_TOKENS)
        assert table is not None
        return table
    tables = [pool.allocate(BLOCK_TOKENS) for _ in range(8)]
    for index in (1, 4, 6):
        pool.release(tables[index])
    table = pool.allocate(3 * BLOCK_TOKENS)
    assert table is not None
    assert table.start is None
    return table


def _seen(pool: KvPool, table: BlockTable, layers: list[int], start: int, end: int):
    slots = table.slots[start:end]
    return torch.stack([torch.stack((pool.keys[i][slots], pool.values[i][slots])) for i in layers])


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scattered", [(False, False), (True, False), (False, True)])
def test_from_pool_to_pool(source, target, scattered) -> None:
    """Some layers and positions of one pool, in an order of their own, into some of another."""
    one, two = _pool(4, source), _pool(3, target)
    first, second = (_table(p, scattered=s) for p, s in zip((one, two), scattered, strict=True))
    data = read_rows(one, first, torch.tensor([3, 1]), 5, 40)
    assert data.dtype == torch.uint8
    assert data.numel() == 35 * row_bytes(one, 2)
    name = str(source).removeprefix("torch.")
    before = two._kv.clone()
    values = as_tensor(memoryview(data.numpy().tobytes()), name)
    write_rows(two, second, torch.tensor([0, 2]), 5, 40, values)
    assert torch.equal(
        _seen(two, second, [0, 2], 5, 40), _seen(one, first, [3, 1], 5, 40).to(target)
    )
    # Nothing else changed.
    slots = second.slots[5:40]
    for layer in (0, 2):
        two._kv[layer][:, slots] = before[layer][:, slots]
    assert torch.equal(two._kv, before)


def test_into_given_memory() -> None:
    """Bytes that were read into somebody's memory are those of a new tensor."""
    pool = _pool(2, torch.bfloat16)
    table, layers = _table(pool, scattered=False), torch.tensor([1])
    out = torch.zeros(10 * row_bytes(pool, 1), dtype=torch.uint8)
    assert torch.equal(
        read_rows(pool, table, layers, 2, 12, out), read_rows(pool, table, layers, 2, 12)
    )
    assert out.any()


@pytest.mark.parametrize(("data", "dtype"), [(b"1234", "int8"), (b"123", "float32"), (b"", "x")])
def test_bytes_that_are_none(data, dtype) -> None:
    """Unknown types and lengths that do not fit are refused."""
    with pytest.raises(ValueError, match="bytes|known"):
        as_tensor(memoryview(data), dtype)


def test_rows_of_another_size() -> None:
    """Too many or too few elements are refused, and nothing is written."""
    pool = _pool(2, torch.float32)
    table, before = _table(pool, scattered=False), pool._kv.clone()
    with pytest.raises(ValueError, match="elements"):
        write_rows(pool, table, torch.tensor([0]), 0, 4, torch.ones(7))
    assert torch.equal(pool._kv, before)
