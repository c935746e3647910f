"""Keys and values of some positions and layers as plain bytes, out of a pool and into another."""

from __future__ import annotations

import torch

from slipstream.engine.kv_pool import BlockTable, KvPool

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bfloat16, torch.float16, torch.float32)
}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def as_tensor(data: memoryview, dtype: str) -> torch.Tensor:
    """Bytes from elsewhere as a tensor [elements], without a copy where they may be written to.

    Raises:
        ValueError: the dtype is not known, or does not divide the bytes.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"keys and values of type {dtype!r} are not known")
    if len(data) % _DTYPES[dtype].itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {dtype}")
    return torch.frombuffer(bytearray(data) if data.readonly else data, dtype=_DTYPES[dtype])


def row_bytes(pool: KvPool, layers: int) -> int:
    """Bytes of one position in so many layers."""
    _, pair, _, heads, dim = pool._kv.shape
    return layers * pair * heads * dim * pool._kv.element_size()


def read_rows(
    pool: KvPool,
    table: BlockTable,
    layers: torch.Tensor,
    start: int,
    end: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Copies keys and values of the positions [start, end).

    Args:
        layers: int64, places in the pool, on the pool's device.
        out: uint8 on the host, as many bytes as there are; a new tensor where None.

    Returns:
        uint8, row-major [layers, 2, end - start, kv_heads, head_dim] in the pool's dtype.
    """
    if table.start is not None:
        rows = pool._kv[:, :, table.start + start : table.start + end].index_select(0, layers)
    else:
        pairs = torch.arange(2, device=layers.device)
        slots = table.slots[start:end]
        rows = pool._kv[layers[:, None, None], pairs[:, None], slots]
    found = rows.reshape(-1).view(torch.uint8)
    if out is None:
        return found.cpu()
    return out.copy_(found)


def write_rows(
    pool: KvPool,
    table: BlockTable,
    layers: torch.Tensor,
    start: int,
    end: int,
    data: torch.Tensor,
) -> None:
    """Puts what `read_rows` gave at the positions [start, end), converted to the pool's dtype.

    Call `KvPool.enter` before positions that were not written yet.

    Args:
        data: any dtype, host or device, with the elements that `read_rows` describes.

    Raises:
        ValueError: it has another number of elements.
    """
    _, pair, _, heads, dim = pool._kv.shape
    shape = (layers.numel(), pair, end - start, heads, dim)
    if data.numel() != torch.Size(shape).numel():
        raise ValueError(f"{data.numel()} elements are not keys and values of shape {shape}")
    rows = data.view(shape).to(pool._kv.device, pool._kv.dtype)
    pairs = torch.arange(pair, device=layers.device)
    pool._kv[layers[:, None, None], pairs[:, None], table.slots[start:end]] = rows
