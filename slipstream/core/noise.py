"""Counter-based Gumbel noise, keyed by (seed, position, token id). No state, no order.

The bits are those of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a stream that starts at a
hash of (seed, position) and is indexed by token id. Any subset of the tokens can be asked for,
in any order, anywhere, and gets the same values.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S12 = (np.uint64(s) for s in (30, 27, 31, 12))

# uniform() lies in [2**-53, 1 - 2**-53], so gumbel() lies in (-3.7, 36.8).
MIN_GUMBEL = -3.7
MAX_GUMBEL = 36.8


def _bits(seed: int, position: int, token_ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    key = seed.to_bytes(8, "little") + position.to_bytes(8, "little")
    start = np.uint64(int.from_bytes(blake2b(key, digest_size=8).digest(), "little"))
    with np.errstate(over="ignore"):
        z = (token_ids.astype(np.uint64) + np.uint64(1)) * _GOLDEN + start
        z = (z ^ (z >> _S30)) * _MIX1
        z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


def uniform(seed: int, position: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in the open interval (0, 1), one for each token id, shape [n]."""
    # 52 bits: with 53, adding the half would round, and the largest value would become 1.
    return ((_bits(seed, position, token_ids) >> _S12).astype(np.float64) + 0.5) * 2.0**-52


def gumbel(seed: int, position: int, token_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard Gumbel noise, one value for each token id, shape [n]."""
    values: NDArray[np.float64] = -np.log(-np.log(uniform(seed, position, token_ids)))
    return values
