"""Compiled reductions over rows of logits; as tensor operations they take several times as long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from slipstream.engine.kernels import OPTIONS, _exp

# Bits of bfloat16 infinity; greater magnitudes are not numbers.
_INFINITY = 0x7F80
# Logits of which the largest is taken in vectors, before it is looked up among them.
_CHUNK = 512


@njit("float32(float32[::1], float32, float32)", **OPTIONS)
def sum_exp(row: Any, best: Any, scale: Any) -> Any:
    """Sum of exp((x - best) * scale) over a row; `best` is its largest number, `scale` positive."""
    total = np.float32(0.0)
    for i in range(row.size):
        total += _exp((row[i] - best) * scale)
    return total


@njit(inline="always")
def _order(bits: Any) -> Any:
    """bfloat16 bits to integers in the order of the numbers; both zeros are 0."""
    return bits if bits >= np.int16(0) else np.int16(-np.int16(bits & np.int16(0x7FFF)))


@njit("void(int16[:, ::1], int64[::1], boolean[::1])", **OPTIONS)
def argmax_bf16(rows: Any, found: Any, finite: Any) -> None:
    """What numpy's argmax and isfinite say of bfloat16 [rows, size], given as its bits.

    Args:
        found: gets each row's first maximum; the first that is not a number, where there is one.
        finite: gets whether that one is finite.
    """
    size = rows.shape[1]
    for r in range(rows.shape[0]):
        row = rows[r]
        # All in 16 bits and without branches, so that 32 logits fit a vector.
        best, least, start = np.int16(-32768), np.int16(32767), 0
        for at in range(0, size, _CHUNK):
            high, low, chunk = np.int16(-32768), np.int16(32767), row[at : at + _CHUNK]
            for i in range(chunk.size):
                value = _order(chunk[i])
                high = max(high, value)
                low = min(low, value)
            if high > best:
                best, start = high, at
            least = min(least, low)
        unknown = best > _INFINITY or least < -_INFINITY
        for i in range(0 if unknown else start, size):
            value = _order(row[i])
            if abs(value) > _INFINITY if unknown else value == best:
                found[r] = i
                break
        finite[r] = not unknown and abs(best) < _INFINITY
