"""Compiled sums over a row of logits; with numpy's temporaries they take several times as long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from slipstream.engine.kernels import OPTIONS, _exp


@njit("float32(float32[::1], float32, float32)", **OPTIONS)
def sum_exp(row: Any, best: Any, scale: Any) -> Any:
    """Sum of exp((x - best) * scale) over a row; `best` is its largest number, `scale` positive."""
    total = np.float32(0.0)
    for i in range(row.size):
        total += _exp((row[i] - best) * scale)
    return total
