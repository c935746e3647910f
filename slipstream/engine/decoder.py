"""The decoder of a model whose layers are all fused: embedding, layers and final norm, without
the library's calls around them.

For a few rows of a small model those calls take as long as a tenth of the layers. What is left is
the same operations on the same numbers, so the results have the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slipstream.engine import attention_kernel, block_kernel
from slipstream.engine.attention import CONTEXT, ForwardContext
from slipstream.engine.checkpoint import LoadedModel
from slipstream.engine.fused import FusedBlock, FusedNorm, fold_sign
from slipstream.engine.kv_pool import KvPool

# Models of these classes are: embedding, layers one after another, norm; one kind of rotation.
_DECODERS = {f"{family}Model" for family in ("Llama", "Mistral", "Qwen2", "Qwen3")}
# Positions that rotations are computed for at once.
_ROPE_ROWS = 1024


class Decoder:
    """One thread at a time.

    Args:
        pool, kv_index: as of `ForwardContext`; they serve every pass.
    """

    def __init__(self, loaded: LoadedModel, pool: KvPool, kv_index: dict[int, int]) -> None:
        model: Any = loaded.model
        self._first, self._last = loaded.shard.first, loaded.shard.last
        self._decoder = model.get_decoder()
        self._blocks: list[FusedBlock] = [self._decoder.layers[i] for i in loaded.shard.layers]
        self._rope = _Rotation(self._decoder.rotary_emb, loaded)
        self._addresses = {layer: pool.addresses[at] for layer, at in kv_index.items()}
        empty = [not (block.has_attention or block.has_mlp) for block in self._blocks]
        described = [block.description is not None for block in self._blocks]
        self._compiled = all(map(bool.__or__, empty, described))
        self._flags: list[bool] = []
        self._calls = torch.empty(0)

    @staticmethod
    def serves(loaded: LoadedModel) -> bool:
        """Whether all of the model is known here."""
        decoder: Any = loaded.model.get_decoder()  # type: ignore[operator]
        return (
            type(decoder).__name__ in _DECODERS
            and all(isinstance(decoder.layers[i], FusedBlock) for i in loaded.shard.layers)
            and isinstance(decoder.norm, FusedNorm if loaded.shard.last else nn.Identity)
        )

    def forward(self, context: ForwardContext) -> torch.Tensor:
        """The rows of a batch as they leave the decoder, [1, rows, size].

        From a shard that is not the last they are the rows that the next one takes.
        """
        batch = context.batch
        if self._first:
            x: torch.Tensor = self._decoder.embed_tokens.forward(batch.input_ids)
        else:
            assert context.hidden is not None, "rows of a later shard come from the one before it"
            x = context.hidden
        cos, sin = self._rope.rows(x, context)
        if self._compiled and x.shape[1] <= attention_kernel.most_rows():
            block_kernel.run(self._layer_calls(), x, cos, sin, context.segment_table())
        else:
            rope, passed = (cos, sin), {CONTEXT: context}
            context.rope = (cos, cos, sin)
            for block in self._blocks:
                x = block.forward(x, rope, **passed)
        return self._decoder.norm.forward(x) if self._last else x

    def _layer_calls(self) -> torch.Tensor:
        """What `block_kernel.run` takes: made again when other sublayers take part."""
        flags = [flag for block in self._blocks for flag in (block.attends, block.mixes)]
        if flags != self._flags:
            self._flags = flags
            rows = []
            for block in self._blocks:
                if block.attends or block.mixes:
                    assert block.description is not None
                    keys, values = 0, 0
                    if block.attends:
                        keys, values = self._addresses[block.self_attn.layer_idx]
                    rows.append(
                        [block.description.data_ptr(), keys, values, block.attends, block.mixes]
                    )
            self._calls = torch.tensor(rows, dtype=torch.int64).view(-1, block_kernel.CALL)
        return self._calls


class _Rotation:
    """Rotations by position (arXiv 2104.09864), computed once by the library and looked up then."""

    def __init__(self, rotary: Any, loaded: LoadedModel) -> None:
        self._rotary = rotary
        self._most = loaded.context_length
        # cos and sign-folded sin, [2, positions, head_dim], of as many as were asked for.
        self._table = torch.empty((2, 0, 0), device=loaded.device)

    def rows(self, x: torch.Tensor, context: ForwardContext) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sign-folded sin of a batch's rows, each [rows, head_dim], in the type of `x`."""
        batch = context.batch
        end = max(s.position + s.rows.stop - s.rows.start for s in batch.segments)
        if end > self._table.shape[1]:
            self._grow(end, x)
        first, rows = batch.segments[0], x.shape[1]
        if len(batch.segments) == 1 and first.rows.stop == rows:
            both = self._table[:, first.position : first.position + rows]
        else:
            both = self._table.index_select(1, batch.position_ids[0])
        return both[0], both[1]

    def _grow(self, end: int, x: torch.Tensor) -> None:
        known = self._table.shape[1]
        end = max(end, min(self._most, max(2 * known, _ROPE_ROWS)))
        positions = torch.arange(end, device=x.device)[None]
        cos, sin = self._rotary(x, position_ids=positions)
        self._table = torch.stack((cos[0], fold_sign(sin[0])))
