"""Decoder layers in one compiled call: few rows of bfloat16, integer products, on a CPU.

A small model's layer is computed in a tenth of a millisecond, which Python spends on the calls
between its parts. Here the parts are those of `kernels`, `integer_kernel` and `attention_kernel`,
called one after another from compiled code, layer after layer: the same bits, without the calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import carray, njit

from slipstream.engine import attention_kernel
from slipstream.engine.attention_kernel import attend_rows
from slipstream.engine.attention_tiles import has_dot
from slipstream.engine.integer_kernel import PRODUCT, multiply_rows
from slipstream.engine.kernels import (
    OPTIONS,
    add_rms_norm,
    add_rows,
    as_f32,
    as_i64,
    rms_norm,
    silu_mul,
)
from slipstream.engine.team import entry, keep

# Numbers of a layer: hidden and MLP width, the weights of both norms, heads, KV heads, dimension
# of a head, window, worker of the attention and whether it uses dot products of bfloat16; two of
# float32 each: scaling of the attention and nothing, epsilons of the norms; then the four products:
# q, k and v; output; gate and up; down.
_HEAD = 12
_SIZE = _HEAD + 4 * PRODUCT
_FLOATS = 10
# Numbers of a layer in a pass: address of what `describe` gives, addresses of its keys and of its
# values in the pool, whether the attention and the MLP take part.
CALL = 5
_I = "int64"


def describe(
    *,
    width: int,
    norms: tuple[torch.Tensor | None, torch.Tensor | None],
    geometry: tuple[int, int, int, int],
    products: Sequence[torch.Tensor | None],
    scaling: float,
    eps: tuple[float, float],
) -> torch.Tensor:
    """The numbers of a layer, int64 [_SIZE]. Tensors behind the addresses must outlive it.

    Args:
        width: of the MLP.
        norms: before the attention and before the MLP; None where that part is not there.
        eps: of these norms.
        geometry: heads, KV heads, dimension of a head, window or 0; zeros without attention.
        products: as `integer_kernel.describe` has them; None where that part is not there.
    """
    attention_kernel.prepare()
    weights = [0 if norm is None else norm.data_ptr() for norm in norms]
    worker, dot = attention_kernel.worker_address(), int(has_dot())
    hidden = next(norm.numel() for norm in norms if norm is not None)
    floats = torch.tensor([scaling, 0.0, *eps], dtype=torch.float32).view(torch.int64)
    numbers = [hidden, width, *weights, *geometry, worker, dot, *floats.tolist()]
    for product in products:
        numbers += [0] * PRODUCT if product is None else product.tolist()
    return torch.tensor(numbers, dtype=torch.int64)


@njit("void(" + ",".join([_I] * 13) + ")", **OPTIONS)
def _run_layer(
    layer: int, entry: int, threads: int, x: int, rows: int, cos: int, sin: int, keys: int,
    values: int, segments: int, segment_count: int, attends: int, mixes: int,
) -> None:  # fmt: skip
    numbers = carray(as_i64(layer), (_SIZE,))
    hidden, width, first, second = numbers[0], numbers[1], numbers[2], numbers[3]
    heads, kv_heads, dim, window = numbers[4], numbers[5], numbers[6], numbers[7]
    worker, dot = numbers[8], numbers[9]
    floats = carray(as_f32(layer + 8 * _FLOATS), (4,))
    scaling, first_eps, second_eps = floats[0], floats[2], floats[3]
    product = layer + 8 * _HEAD
    normed, delta = np.empty(rows * hidden, np.uint16), np.empty(rows * hidden, np.uint16)
    normed_at, delta_at = normed.ctypes.data, delta.ctypes.data
    if attends:
        rms_norm(x, first, normed_at, rows, hidden, first_eps)
        qkv = np.empty(rows * (heads + 2 * kv_heads) * dim, np.uint16)
        multiply_rows(entry, threads, product, normed_at, qkv.ctypes.data, rows)
        # Rows that only pad belong to no segment; zeros keep them finite.
        mixed = np.zeros(rows * heads * dim, np.uint16)
        attend_rows(
            entry, worker, threads, dot, qkv.ctypes.data, cos, sin, keys, values, segments,
            segment_count, mixed.ctypes.data, heads, kv_heads, dim, window, scaling,
        )  # fmt: skip
        multiply_rows(entry, threads, product + 8 * PRODUCT, mixed.ctypes.data, delta_at, rows)
        keep(qkv)
        keep(mixed)
        if mixes:
            add_rms_norm(x, delta_at, second, normed_at, rows, hidden, second_eps)
        else:
            add_rows(x, delta_at, rows * hidden)
    elif mixes:
        rms_norm(x, second, normed_at, rows, hidden, second_eps)
    if mixes:
        both, gated = np.empty(2 * rows * width, np.uint16), np.empty(rows * width, np.uint16)
        at = product + 8 * 2 * PRODUCT
        multiply_rows(entry, threads, at, normed_at, both.ctypes.data, rows)
        silu_mul(both.ctypes.data, gated.ctypes.data, rows, width)
        at += 8 * PRODUCT
        multiply_rows(entry, threads, at, gated.ctypes.data, delta_at, rows)
        add_rows(x, delta_at, rows * hidden)
        keep(both)
        keep(gated)
    keep(normed)
    keep(delta)


@njit("void(" + ",".join([_I] * 10) + ")", **OPTIONS)
def _run(
    calls: int, count: int, entry: int, threads: int, x: int, rows: int, cos: int, sin: int,
    segments: int, segment_count: int,
) -> None:  # fmt: skip
    table = carray(as_i64(calls), (count, CALL))
    for i in range(count):
        _run_layer(
            table[i, 0], entry, threads, x, rows, cos, sin, table[i, 1], table[i, 2], segments,
            segment_count, table[i, 3], table[i, 4],
        )  # fmt: skip


def run(
    calls: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    segments: torch.Tensor,
) -> None:  # fmt: skip
    """Runs layers over the residual stream, in place.

    Args:
        calls: int64 [layers, CALL].
        x: bfloat16 [..., rows, hidden], contiguous.
        cos, sin, segments: as of `attention_kernel.attend`.
    """
    hidden = x.shape[-1]
    _run(
        calls.data_ptr(), len(calls), entry(), torch.get_num_threads(), x.data_ptr(),
        x.numel() // hidden, cos.data_ptr(), sin.data_ptr(), segments.data_ptr(), len(segments),
    )  # fmt: skip
