"""Attention over the paged pool, for `transformers`' attention interface and our fused layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slipstream.engine import attention_kernel
from slipstream.engine.batch import Batch, SegmentRows
from slipstream.engine.kv_pool import KvPool
from slipstream.engine.modeling import AttentionInterface

IMPLEMENTATION = "slipstream"
# The keyword under which a forward call hands its context down to attention.
CONTEXT = "slipstream_context"


class ForwardContext:
    """What attention needs beside its tensors: the batch, the pool, and scratch shared by layers.

    Args:
        kv_index: decoder layer index to the layer's place in the pool.
        hidden: [1, rows, size], the rows as they leave the shard before this one.
    """

    __slots__ = ("_segments", "batch", "hidden", "kv_index", "pool", "rope")

    def __init__(
        self,
        batch: Batch,
        pool: KvPool,
        kv_index: dict[int, int],
        hidden: torch.Tensor | None = None,
    ) -> None:
        self.batch = batch
        self.pool = pool
        self.kv_index = kv_index
        self.hidden = hidden
        self.rope: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        # `attention_kernel.segment_table`, where the compiled attention serves.
        self._segments: torch.Tensor | None = None

    def segment_table(self) -> torch.Tensor:
        """What the compiled attention needs to know of the batch; made once for all layers."""
        if self._segments is None:
            self._segments = attention_kernel.segment_table(self.batch)
        return self._segments


def attend(
    context: ForwardContext,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Writes the rows' keys and values to the pool, then attends within each sequence.

    Args:
        query: [rows, heads, head_dim]; key, value: [rows, kv_heads, head_dim].
        window: a query sees this many positions, its own included; None sees all.
        softcap: scores are bent to softcap * tanh(score / softcap) (Gemma 2).

    Returns:
        [rows, heads, head_dim].
    """
    index = context.kv_index[layer]
    keys, values = context.pool.keys[index], context.pool.values[index]
    batch = context.batch
    first = batch.segments[0]
    if len(batch.segments) == 1 and first.table.start is not None:
        # One sequence, contiguous: two plain copies, no gather; rows that only pad write nothing.
        count, start = first.rows.stop, first.table.start
        at = start + first.position
        keys[at : at + count].copy_(key[:count])
        values[at : at + count].copy_(value[:count])
        seen = slice(start, start + first.padded)
        out = _attend_one(first, query[:count], keys[seen], values[seen], scaling, window, softcap)
        missing = query.shape[0] - count
        return F.pad(out, (0, 0, 0, 0, 0, missing)) if missing else out
    keys.index_copy_(0, batch.slots, key)
    values.index_copy_(0, batch.slots, value)
    result = query.new_zeros(query.shape)
    for segment in batch.segments:
        low = segment.table.start
        if low is not None:
            seen_keys = keys[low : low + segment.padded]
            seen_values = values[low : low + segment.padded]
        else:
            slots = segment.table.slots[: segment.padded]
            seen_keys, seen_values = keys.index_select(0, slots), values.index_select(0, slots)
        result[segment.rows] = _attend_one(
            segment, query[segment.rows], seen_keys, seen_values, scaling, window, softcap
        )
    return result


def _attend_one(
    segment: SegmentRows,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of one segment. query [rows, heads, d], keys and values [padded, kv_heads, d].

    Heads that share a key head become rows of one product: [kv_heads, group * queries, d]. The
    kernel then reads each key once, and one row per sequence (plain decoding) stays a matrix.
    """
    rows, heads, dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    queries = segment.num_queries
    if queries > rows:
        query = torch.cat((query, query[-1:].expand(queries - rows, heads, dim)))
    folded = query.view(queries, kv_heads, group, dim).permute(1, 2, 0, 3)
    folded = folded.reshape(1, kv_heads, group * queries, dim)
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    mask = segment.mask(window, group, query.dtype)
    if softcap is None:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    else:
        scores = torch.matmul(folded, keys.transpose(2, 3)) * scaling
        scores = torch.tanh(scores / softcap) * softcap
        out = torch.matmul((scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype), values)
    out = out.view(kv_heads, group, queries, dim).permute(2, 0, 1, 3)
    return out[:rows].reshape(rows, heads, dim)


def _interface(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The shape that `transformers` calls: [1, heads, rows, d] in, [1, rows, heads, d] out."""
    out = attend(
        kwargs[CONTEXT],
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling,
        sliding_window,
        softcap,
    )
    return out[None], None


AttentionInterface.register(IMPLEMENTATION, _interface)
