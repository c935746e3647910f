"""A packed ragged batch: rows of several sequences side by side, without padding between them."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from slipstream.engine.kv_pool import BLOCK_TOKENS, SCRATCH_SLOT, BlockTable


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one sequence.

    Attributes:
        tokens: input ids of the rows.
        position: of the first row; keys and values before it are in the pool already.
        table: where the sequence lives.
        num_logits: for how many of the last rows logits are wanted.
    """

    tokens: Seq[int]
    position: int
    table: BlockTable
    num_logits: int

    @property
    def kv_length(self) -> int:
        return self.position + len(self.tokens)


@dataclass(slots=True)
class SegmentRows:
    """What attention needs to know of one segment, or a piece of it.

    Masks are made once and serve all layers.
    """

    rows: slice
    position: int  # of the first row
    positions: torch.Tensor  # int64 [rows]
    table: BlockTable
    # Keys that attention reads: the segment's, and up to the next border of a block, where they
    # are masked. A kernel's vectors then split the sum the same way whatever the exact length,
    # and a row's result does not depend on which rows came with it.
    padded: int
    # Query rows including padding, which repeat the last one (strict shapes only).
    num_queries: int
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, repeat: int, dtype: torch.dtype) -> torch.Tensor:
        """Additive visibility, [repeat * num_queries, padded].

        Row r stands for query r % num_queries. A query sees keys at its own position and
        before, within `window` positions where there is a sliding window. There is a mask even
        where it hides nothing: kernels round differently without one.
        """
        key = (window, repeat)
        if key not in self.masks:
            self.masks[key] = self._make_mask(window, repeat, dtype)
        return self.masks[key]

    def _make_mask(self, window: int | None, repeat: int, dtype: torch.dtype) -> torch.Tensor:
        positions = self.positions
        keys = torch.arange(self.padded, device=positions.device)
        if self.num_queries > positions.numel():
            pad = positions[-1:].expand(self.num_queries - positions.numel())
            positions = torch.cat((positions, pad))
        hidden = keys > positions[:, None]
        if window is not None:
            hidden |= keys <= positions[:, None] - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
        mask.masked_fill_(hidden, float("-inf"))
        return mask.repeat(repeat, 1)


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one forward pass.

    Attributes:
        input_ids, position_ids: int64 [1, rows].
        slots: int64 [rows], where each row's key and value go.
        segments: the rows of each sequence, in one piece or several. Rows in none are padding.
        logit_rows: int64 [num_logits or more]; those behind num_logits only pad.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    slots: torch.Tensor
    segments: tuple[SegmentRows, ...]
    logit_rows: torch.Tensor
    num_logits: int


def _pad_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _pieces(segment: Segment, *, by_block: bool) -> list[tuple[int, int]]:
    """The positions of a segment, in one piece or in one for each block of the pool."""
    borders = [segment.position, segment.kv_length]
    if by_block:
        first = _pad_up(segment.position + 1, BLOCK_TOKENS)
        borders[1:1] = range(first, segment.kv_length, BLOCK_TOKENS)
    return list(pairwise(borders))


def pack(
    segments: Seq[Segment], *, min_rows: int, query_multiple: int, device: torch.device
) -> Batch:
    """Lays segments out side by side.

    Args:
        min_rows: fewest rows of the batch; rows that only pad are added behind.
        query_multiple: query rows that attention sees are padded to a multiple of it. Above 1 a
            segment is also split where blocks of the pool end: how a kernel adds up may depend on
            the number of keys, and so that depends on the position of a row alone.
    """
    tokens: list[int] = []
    at: list[int] = []
    wanted: list[int] = []
    slots: list[torch.Tensor] = []
    for segment in segments:
        tokens += segment.tokens
        at += range(segment.position, segment.kv_length)
        wanted += range(len(tokens) - segment.num_logits, len(tokens))
        slots.append(segment.table.slots[segment.position : segment.kv_length])
    num_logits, padding = len(wanted), max(0, min_rows - len(tokens))
    if wanted:
        wanted += wanted[-1:] * (min_rows - num_logits)
    if padding:
        tokens += [0] * padding
        at += [0] * padding
        slots.append(torch.full((padding,), SCRATCH_SLOT, device=device))
    # A step of few rows notices every tensor operation, so there are as few as can be.
    ids, positions = torch.tensor((tokens, at), device=device)
    rows: list[SegmentRows] = []
    end = 0
    for segment in segments:
        for first, last in _pieces(segment, by_block=query_multiple > 1):
            start, end = end, end + last - first
            rows.append(
                SegmentRows(
                    rows=slice(start, end),
                    position=first,
                    positions=positions[start:end],
                    table=segment.table,
                    padded=_pad_up(last, BLOCK_TOKENS),
                    num_queries=_pad_up(end - start, query_multiple),
                )
            )
    return Batch(
        input_ids=ids[None],
        position_ids=positions[None],
        slots=torch.cat(slots) if len(slots) > 1 else slots[0],
        segments=tuple(rows),
        logit_rows=torch.tensor(wanted, dtype=torch.int64, device=device),
        num_logits=num_logits,
    )
