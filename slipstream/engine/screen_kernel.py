"""Compiled choice and rescoring of a screened head's candidates, for bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from slipstream.engine.kernels import OPTIONS, as_u16, load_bf16, round_bf16

BLOCK = 16
_KEYS = 1 << 16
_TOP, _SIGN = np.uint16(0xFFFF), np.uint16(0x8000)


@njit(inline="always")
def _key(bits: Any) -> Any:
    """bfloat16 bits as an unsigned number in the same order."""
    return np.uint16(bits ^ (_TOP if bits & _SIGN else _SIGN))


@njit("uint16(uint16[::1], int64[::1], int64)", **OPTIONS)
def _threshold(maxima: Any, counts: Any, wanted: int) -> Any:
    """The `wanted`-th highest of the maxima. `counts` is all zeros, and is left so."""
    best = np.uint16(0)
    for i in range(maxima.size):
        counts[maxima[i]] += 1
        best = max(best, maxima[i])
    key, seen = np.int64(best), counts[best]
    while seen < wanted:
        key -= 1
        seen += counts[key]
    for i in range(maxima.size):
        counts[maxima[i]] = 0
    return np.uint16(key)


@njit("void(int64,int64,int64,int64,int64,int64,int64)", **OPTIONS)
def rescore(
    x: int, weight: int, logits: int, rows: int, vocab: int, hidden: int, wanted: int
) -> None:
    """Replaces previews by exact logits where they are high; see `ScreenedHead`.

    x: bfloat16 [rows, hidden]; weight: bfloat16 [vocab, hidden]; logits: bfloat16 [rows, vocab].
    At least `wanted` logits of each row are replaced, at most the number of blocks of 16 are asked
    for. Sums are float32.
    """
    blocks = (vocab + BLOCK - 1) // BLOCK
    maxima, counts = np.empty(blocks, np.uint16), np.zeros(_KEYS, np.int64)
    values = np.empty(hidden, np.float32)
    for r in range(rows):
        xs = carray(as_u16(x + 2 * r * hidden), (hidden,))
        for i in range(hidden):
            values[i] = load_bf16(xs[i])
        row = carray(as_u16(logits + 2 * r * vocab), (vocab,))
        for b in range(blocks):
            best = np.uint16(0)
            for i in range(b * BLOCK, min(vocab, (b + 1) * BLOCK)):
                best = max(best, _key(row[i]))
            maxima[b] = best
        least = _threshold(maxima, counts, wanted)
        for b in range(blocks):
            if maxima[b] < least:
                continue
            for t in range(b * BLOCK, min(vocab, (b + 1) * BLOCK)):
                if _key(row[t]) >= least:
                    w = carray(as_u16(weight + 2 * t * hidden), (hidden,))
                    total = np.float32(0.0)
                    for i in range(hidden):
                        total += load_bf16(w[i]) * values[i]
                    row[t] = round_bf16(total)
