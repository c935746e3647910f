"""A whole decoder layer in one compiled call: few rows of bfloat16, integer products, on a CPU.

A small model's layer is computed in a tenth of a millisecond, which Python spends on the calls
between its parts. Here the parts are those of `kernels`, `integer_kernel` and `attention_kernel`,
called one after another from compiled code: the same bits, without the calls.
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
    as_i64,
    rms_norm,
    silu_mul,
)
from slipstream.engine.team import entry, keep

# Numbers of a layer: hidden and MLP width, the weights of both norms, heads, KV heads, dimension
# of a head, window, worker of the attention and whether it uses dot products of bfloat16; then
# the four products: q, k and v; output; gate and up; down.
_HEAD = 10
_SIZE = _HEAD + 4 * PRODUCT
_I = "int64"


def describe(
    *,
    width: int,
    norms: tuple[torch.Tensor | None, torch.Tensor | None],
    geometry: tuple[int, int, int, int],
    products: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """The numbers of a layer, int64 [_SIZE]. Tensors behind the addresses must outlive it.

    Args:
        width: of the MLP.
        norms: before the attention and before the MLP; None where that part is not there.
        geometry: heads, KV heads, dimension of a head, window or 0; zeros without attention.
        products: as `integer_kernel.describe` has them; None where that part is not there.
    """
    attention_kernel.prepare()
    weights = [0 if norm is None else norm.data_ptr() for norm in norms]
    worker, dot = attention_kernel.worker_address(), int(has_dot())
    hidden = next(norm.numel() for norm in norms if norm is not None)
    numbers = [hidden, width, *weights, *geometry, worker, dot]
    for product in products:
        numbers += [0] * PRODUCT if product is None else product.tolist()
    return torch.tensor(numbers, dtype=torch.int64)


@njit("void(" + ",".join([_I] * 13) + ",float32,float32,float32)", **OPTIONS)
def _run(
    layer: int, entry: int, threads: int, x: int, rows: int, cos: int, sin: int, keys: int,
    values: int, segments: int, segment_count: int, attends: int, mixes: int,
    scaling: float, first_eps: float, second_eps: float,
) -> None:  # fmt: skip
    numbers = carray(as_i64(layer), (_SIZE,))
    hidden, width, first, second = numbers[0], numbers[1], numbers[2], numbers[3]
    heads, kv_heads, dim, window = numbers[4], numbers[5], numbers[6], numbers[7]
    worker, dot = numbers[8], numbers[9]
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


def run(
    layer: torch.Tensor, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, keys: int,
    values: int, segments: torch.Tensor, *, attends: bool, mixes: bool, scaling: float,
    eps: tuple[float, float],
) -> None:  # fmt: skip
    """Runs a layer over the residual stream, in place.

    Args:
        layer: from `describe`.
        x: bfloat16 [..., rows, hidden], contiguous.
        cos, sin, keys, values, segments: as of `attention_kernel.attend`.
        attends, mixes: whether the attention and the MLP take part.
        eps: of the norms before attention and MLP.
    """
    hidden = x.shape[-1]
    _run(
        layer.data_ptr(), entry(), torch.get_num_threads(), x.data_ptr(), x.numel() // hidden,
        cos.data_ptr(), sin.data_ptr(), keys, values, segments.data_ptr(), len(segments),
        attends, mixes, scaling, *eps,
    )  # fmt: skip
