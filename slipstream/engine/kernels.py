"""Compiled glue for bfloat16 on a CPU: what stands between the matrix products of a layer.

A decoding step of a small model spends as long in dozens of small tensor operations as in its
products. Each function here does one such stretch in one call, over few rows. Every row is
computed by itself, in an order that depends on nothing else in the batch, so the results are
bitwise the same whatever comes along.

Compiled by numba at first use and kept (`kernel_cache`). Arguments are addresses
(`Tensor.data_ptr`) and sizes: an array would cost more to unpack than some of the work takes.
Callers own the checks; `fused.compiled` says whether the functions can be used at all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from slipstream.engine.kernel_cache import CACHED

_LOG2E = np.float32(1.4426950408889634)


@intrinsic
def as_u16(typing: Any, address: Any) -> Any:
    return _pointer(types.uint16, 16)


@intrinsic
def as_i8(typing: Any, address: Any) -> Any:
    return _pointer(types.int8, 8)


@intrinsic
def as_u8(typing: Any, address: Any) -> Any:
    return _pointer(types.uint8, 8)


@intrinsic
def as_f32(typing: Any, address: Any) -> Any:
    signature = types.CPointer(types.float32)(types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.PointerType(ir.FloatType()))

    return signature, generate


@intrinsic
def as_i64(typing: Any, address: Any) -> Any:
    return _pointer(types.int64, 64)


def _pointer(kind: Any, bits: int) -> Any:
    signature = types.CPointer(kind)(types.int64)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.PointerType(ir.IntType(bits)))

    return signature, generate


@intrinsic
def _as_float(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def _as_bits(typing: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@njit(inline="always")
def load_bf16(bits: int) -> Any:
    """bfloat16 bits to float32."""
    return _as_float(np.uint32(np.uint32(bits) << np.uint32(16)))


@njit(inline="always")
def round_bf16(value: Any) -> Any:
    """float32 to bfloat16 bits, to nearest even."""
    bits = _as_bits(value)
    bits = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return np.uint16(bits >> np.uint32(16))


@njit(inline="always")
def _exp(x: Any) -> Any:
    """exp in float32 by range reduction and a polynomial (relative error under 3e-7), branch-free
    so that the compiler can make vectors of it."""
    x = x if x > np.float32(-87.0) else np.float32(-87.0)
    x = x if x < np.float32(88.0) else np.float32(88.0)
    y = x * _LOG2E + np.float32(127.5)
    n = np.int32(y)
    k = np.float32(n - np.int32(127))
    r = x - k * np.float32(0.693359375)
    r = r - k * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _as_float(np.uint32(np.uint32(n) << np.uint32(23)))


OPTIONS: dict[str, Any] = {
    "cache": CACHED,
    "nogil": True,
    "error_model": "numpy",
    # Sums may be taken in vector order; NaN and infinity keep their meaning.
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
_I = "int64"


@njit(f"void({_I},{_I},{_I},{_I},{_I},float32)", **OPTIONS)
def rms_norm(x: int, weight: int, out: int, rows: int, size: int, eps: float) -> None:
    """RMSNorm (arXiv 1910.07467). x, out: bfloat16 [rows, size]; weight: bfloat16 [size]."""
    xs, ws = carray(as_u16(x), (rows, size)), carray(as_u16(weight), (size,))
    outs = carray(as_u16(out), (rows, size))
    for r in range(rows):
        total = np.float32(0.0)
        for i in range(size):
            v = load_bf16(xs[r, i])
            total += v * v
        scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
        for i in range(size):
            outs[r, i] = round_bf16(
                load_bf16(round_bf16(load_bf16(xs[r, i]) * scale)) * load_bf16(ws[i])
            )


@njit(f"void({_I},{_I},{_I},{_I},{_I},{_I},float32)", **OPTIONS)
def add_rms_norm(
    residual: int, delta: int, weight: int, out: int, rows: int, size: int, eps: float
) -> None:
    """residual += delta, then its RMSNorm to out; all bfloat16 [rows, size]."""
    ws = carray(as_u16(weight), (size,))
    for r in range(rows):
        sums = carray(as_u16(residual + 2 * r * size), (size,))
        deltas = carray(as_u16(delta + 2 * r * size), (size,))
        outs = carray(as_u16(out + 2 * r * size), (size,))
        total = np.float32(0.0)
        for i in range(size):
            bits = round_bf16(load_bf16(sums[i]) + load_bf16(deltas[i]))
            sums[i] = bits
            v = load_bf16(bits)
            total += v * v
        scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
        for i in range(size):
            outs[i] = round_bf16(
                load_bf16(round_bf16(load_bf16(sums[i]) * scale)) * load_bf16(ws[i])
            )


@njit(f"void({_I},{_I},{_I})", **OPTIONS)
def add_rows(x: int, delta: int, count: int) -> None:
    """x += delta; both bfloat16 [count]."""
    xs, deltas = carray(as_u16(x), (count,)), carray(as_u16(delta), (count,))
    for i in range(count):
        xs[i] = round_bf16(load_bf16(xs[i]) + load_bf16(deltas[i]))


@njit(f"void({_I},{_I},{_I},{_I})", **OPTIONS)
def silu_mul(gate_up: int, out: int, rows: int, size: int) -> None:
    """silu(gate) * up. gate_up: bfloat16 [rows, 2 * size]; out: bfloat16 [rows, size]."""
    for r in range(rows):
        gates = carray(as_u16(gate_up + 4 * r * size), (size,))
        ups = carray(as_u16(gate_up + 4 * r * size + 2 * size), (size,))
        outs = carray(as_u16(out + 2 * r * size), (size,))
        for i in range(size):
            g = load_bf16(gates[i])
            silu = g / (np.float32(1.0) + _exp(-g))
            outs[i] = round_bf16(load_bf16(round_bf16(silu)) * load_bf16(ups[i]))


@njit(f"void({_I},{_I},{_I},{_I},{_I})", **OPTIONS)
def quantize_rows(x: int, out: int, scales: int, rows: int, size: int) -> None:
    """Symmetric 8 bit per row around 128. x: bfloat16, out: uint8 [rows, size]; scales: float32."""
    xs, outs = carray(as_u16(x), (rows, size)), carray(as_u8(out), (rows, size))
    by_row = carray(as_f32(scales), (rows,))
    for r in range(rows):
        most = np.float32(1e-12)
        for i in range(size):
            v = load_bf16(xs[r, i])
            most = max(most, abs(v))
        by_row[r] = most / np.float32(127.0)
        inverse = np.float32(127.0) / most
        for i in range(size):
            outs[r, i] = np.uint8(np.int32(load_bf16(xs[r, i]) * inverse + np.float32(128.5)))


@njit(f"void({_I},{_I},{_I},{_I},{_I})", **OPTIONS)
def scale_rows(x: int, scales: int, out: int, rows: int, size: int) -> None:
    """x * scales[row]. x: float32 [rows, size]; scales: float32 [rows]; out: bfloat16."""
    xs, by_row = carray(as_f32(x), (rows, size)), carray(as_f32(scales), (rows,))
    outs = carray(as_u16(out), (rows, size))
    for r in range(rows):
        scale = by_row[r]
        for i in range(size):
            outs[r, i] = round_bf16(xs[r, i] * scale)
