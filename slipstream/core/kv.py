"""KV handles: leases on the keys and values that a holder has for a prefix, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from slipstream.core.prefix import Prefix


@dataclass(frozen=True, slots=True)
class KvHandle:
    """A lease. KV is a cache: losing it costs time, never tokens.

    Attributes:
        layers: decoder layers that have keys and values.
        dtype: of the holder's keys and values, as torch names it.
        holder: host:port of its KvService.
        incarnation: the life of the holder's process that gave the lease.
        expiry: seconds since the epoch.
        memory_host: names what shares memory with the holder; empty where nothing does.
    """

    id: str
    model_fingerprint: str
    prefix: Prefix
    layers: tuple[int, ...]
    dtype: str
    num_kv_heads: int
    head_dim: int
    holder: str
    incarnation: str
    expiry: float
    memory_host: str = ""

    def row_bytes(self, layers: int) -> int:
        """Of one position in so many layers."""
        width = 4 if self.dtype == "float32" else 2
        return layers * 2 * self.num_kv_heads * self.head_dim * width


@dataclass(frozen=True, slots=True)
class KvChunk:
    """Keys and values of the positions [start, end).

    Attributes:
        prefix: names the first `end` tokens that they belong to.
        data: [layers, 2, end - start, kv_heads, head_dim], row-major, in `dtype`.
        done: to be called once `data` is no longer read.
        shared: whether the data came through shared memory.
    """

    start: int
    end: int
    prefix: Prefix
    layers: tuple[int, ...]
    dtype: str
    data: memoryview
    done: Callable[[], None]
    shared: bool = False
