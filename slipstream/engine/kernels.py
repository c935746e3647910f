"""Compiled glue for bfloat16 on a CPU: what stands between the matrix products of a layer.

A decoding step of a small model spends as long in dozens of small tensor operations as in its
products. Each function here does one such stretch in one call, over few rows. Every row is
computed by itself, in an order that depends on nothing else in the batch, so the results are
bitwise the same whatever comes along.

Compiled by numba at first use and cached on disk. Arguments are addresses (`Tensor.data_ptr`)
and sizes: an array would cost more to unpack than some of the work takes. Callers own the checks;
`available` says whether the functions can be used at all.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

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
def _round(value: Any) -> Any:
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


@njit(inline="always")
def _rotated(xs: Any, cosines: Any, sines: Any, d: int, half: int) -> Any:
    other = d + half if d < half else d - half
    return load_bf16(xs[d]) * load_bf16(cosines[d]) + load_bf16(xs[other]) * load_bf16(sines[d])


OPTIONS: dict[str, Any] = {
    "cache": True,
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
            outs[r, i] = _round(load_bf16(_round(load_bf16(xs[r, i]) * scale)) * load_bf16(ws[i]))


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
            bits = _round(load_bf16(sums[i]) + load_bf16(deltas[i]))
            sums[i] = bits
            v = load_bf16(bits)
            total += v * v
        scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + eps)
        for i in range(size):
            outs[i] = _round(load_bf16(_round(load_bf16(sums[i]) * scale)) * load_bf16(ws[i]))


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
            outs[i] = _round(load_bf16(_round(silu)) * load_bf16(ups[i]))


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
            outs[r, i] = _round(xs[r, i] * scale)


@functools.cache
def attention(heads: int, kv_heads: int, dim: int) -> Any:
    """The attention kernel for one head geometry; loops of known length become plain vectors.

    Returns:
        A function that rotates (arXiv 2104.09864), writes to the KV pool and attends causally, for
        the rows of one segment, with the parameters of `_Attention.__call__`.
    """
    group, half, total = heads // kv_heads, dim // 2, heads + 2 * kv_heads

    @njit(
        f"void({_I},{_I},{_I},{_I},{_I},{_I},{_I},{_I},{_I},{_I},float32)",
        **OPTIONS,
    )
    def rotate_and_attend(
        qkv: int, cos: int, sin: int, keys: int, values: int, slots: int, out: int,
        rows: int, position: int, window: int, scaling: float,
    ) -> None:  # fmt: skip
        end = position + rows
        place = carray(as_i64(slots), (end,))
        query = np.empty((rows * heads, dim), np.float32)
        for r in range(rows):
            cosines = carray(as_u16(cos + 2 * r * dim), (dim,))
            sines = carray(as_u16(sin + 2 * r * dim), (dim,))
            for h in range(heads):
                xs = carray(as_u16(qkv + 2 * (r * total + h) * dim), (dim,))
                mine = query[np.uint64(r * heads + h)]
                for d in range(dim):
                    mine[d] = load_bf16(_round(_rotated(xs, cosines, sines, d, half))) * scaling
            for h in range(kv_heads):
                at = 2 * (place[position + r] * kv_heads + h) * dim
                xs = carray(as_u16(qkv + 2 * (r * total + heads + h) * dim), (dim,))
                into = carray(as_u16(keys + at), (dim,))
                for d in range(dim):
                    into[d] = _round(_rotated(xs, cosines, sines, d, half))
                xs = carray(as_u16(qkv + 2 * (r * total + heads + kv_heads + h) * dim), (dim,))
                into = carray(as_u16(values + at), (dim,))
                for d in range(dim):
                    into[d] = xs[d]
        low = max(0, position - window + 1) if window > 0 else 0
        scores = np.empty((rows * group, end - low), np.float32)
        mixed = np.empty((rows * group, dim), np.float32)
        loud = np.empty(dim, np.float32)
        for h in range(kv_heads):
            for j in range(low, end):
                key = carray(as_u16(keys + 2 * (place[j] * kv_heads + h) * dim), (dim,))
                for d in range(dim):
                    loud[d] = load_bf16(key[d])
                for r in range(max(0, j - position), rows):
                    for g in range(group):
                        asks = query[np.uint64(r * heads + h * group + g)]
                        dot = np.float32(0.0)
                        for d in range(dim):
                            dot += asks[d] * loud[d]
                        scores[np.uint64(r * group + g), np.uint64(j - low)] = dot
            for r in range(rows):
                last = position + r - low
                first = max(0, last - window + 1) if window > 0 else 0
                for g in range(group):
                    shares = scores[np.uint64(r * group + g), first : last + 1]
                    best = shares[0]
                    for j in range(shares.size):
                        best = max(best, shares[j])
                    weight = np.float32(0.0)
                    for j in range(shares.size):
                        e = _exp(shares[j] - best)
                        shares[j] = e
                        weight += e
                    inverse = np.float32(1.0) / weight
                    for j in range(shares.size):
                        shares[j] *= inverse
            mixed[:] = np.float32(0.0)
            for j in range(low, end):
                value = carray(as_u16(values + 2 * (place[j] * kv_heads + h) * dim), (dim,))
                for d in range(dim):
                    loud[d] = load_bf16(value[d])
                for r in range(max(0, j - position), rows):
                    if window > 0 and j <= position + r - window:
                        continue
                    for g in range(group):
                        share = scores[np.uint64(r * group + g), np.uint64(j - low)]
                        sums = mixed[np.uint64(r * group + g)]
                        for d in range(dim):
                            sums[d] += share * loud[d]
            for r in range(rows):
                for g in range(group):
                    sums = mixed[np.uint64(r * group + g)]
                    into = carray(as_u16(out + 2 * (r * heads + h * group + g) * dim), (dim,))
                    for d in range(dim):
                        into[d] = _round(sums[d])

    return rotate_and_attend
