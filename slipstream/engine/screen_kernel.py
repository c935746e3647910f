"""Compiled choice and rescoring of a screened head's candidates, for bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from slipstream.engine.kernels import OPTIONS, as_u16, load_bf16, round_bf16

BLOCK = 16
# Rows between the one that is multiplied and the one that is asked for.
_AHEAD = 4
_TOP, _SIGN = np.uint16(0xFFFF), np.uint16(0x8000)


@njit(inline="always")
def _key(bits: Any) -> Any:
    """bfloat16 bits as an unsigned number in the same order."""
    return np.uint16(bits ^ (_TOP if bits & _SIGN else _SIGN))


@intrinsic
def _prefetch(typing: Any, address: Any) -> Any:
    """Asks for the 64 bytes at an address, which are wanted soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        name = "llvm.prefetch.p0i8"
        call = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        to_read, keep, data = (ir.Constant(i32, n) for n in (0, 3, 1))
        builder.call(call, [builder.inttoptr(arguments[0], pointer), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@njit("int64(uint16[::1], int64, uint16[::1], int64[::1])", **OPTIONS)
def _choose(row: Any, wanted: int, maxima: Any, chosen: Any) -> int:
    """Tokens whose preview is at least the `wanted`-th highest of the blocks' maxima; how many."""
    for b in range(maxima.size):
        best = np.uint16(0)
        for i in range(b * BLOCK, min(row.size, (b + 1) * BLOCK)):
            best = max(best, _key(row[i]))
        maxima[b] = best
    least = np.partition(maxima, maxima.size - wanted)[maxima.size - wanted]
    count = 0
    for b in range(maxima.size):
        if maxima[b] < least:
            continue
        for t in range(b * BLOCK, min(row.size, (b + 1) * BLOCK)):
            if _key(row[t]) >= least:
                chosen[count] = t
                count += 1
    return count


@njit("void(int64,int64,int64,int64,int64,int64,int64)", **OPTIONS)
def rescore(
    x: int, weight: int, logits: int, rows: int, vocab: int, hidden: int, wanted: int
) -> None:
    """Replaces previews by exact logits where they are high; see `ScreenedHead`.

    x: bfloat16 [rows, hidden]; weight: bfloat16 [vocab, hidden]; logits: bfloat16 [rows, vocab].
    At least `wanted` logits of each row are replaced, at most the number of blocks of 16 are asked
    for. Sums are float32.
    """
    maxima, chosen = np.empty((vocab + BLOCK - 1) // BLOCK, np.uint16), np.empty(vocab, np.int64)
    values = np.empty(hidden, np.float32)
    for r in range(rows):
        xs = carray(as_u16(x + 2 * r * hidden), (hidden,))
        for i in range(hidden):
            values[i] = load_bf16(xs[i])
        row = carray(as_u16(logits + 2 * r * vocab), (vocab,))
        count = _choose(row, wanted, maxima, chosen)
        for c in range(count):
            # The rows lie all over the matrix: each is asked for while others are multiplied.
            if c + _AHEAD < count:
                start = weight + 2 * chosen[c + _AHEAD] * hidden
                for line in range(0, 2 * hidden, 64):
                    _prefetch(start + line)
            w = carray(as_u16(weight + 2 * chosen[c] * hidden), (hidden,))
            total = np.float32(0.0)
            for i in range(hidden):
                total += load_bf16(w[i]) * values[i]
            row[chosen[c]] = round_bf16(total)
