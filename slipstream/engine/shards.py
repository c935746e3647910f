"""A model in parts: which decoder layers a shard holds, and what is cut away from the others.

A shard is the whole model with everything that is not its own replaced before the weights are
read: the modelling code stays the library's, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import HeadPrecision, LayerPlan
from slipstream.engine.attention import CONTEXT, ForwardContext
from slipstream.engine.screened_head import likely_rank, screened_bytes

# Bits that one weight takes; those of groups of 32 share a scale and a least value of 16 bits each.
_BITS: dict[HeadPrecision, int] = {"int8": 9, "int4": 5}
# What a sublayer costs beside reading its weights (norm, attention, calls), in bytes that are read
# in the same time. Measured on one AMX x86 core: a layer of SmolLM2-135M in int4 takes 0.25 ms for
# its 2.2 MB, the head in int8 0.8 ms for 32 MB.
_SUBLAYER_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a row of parts.

    Attributes:
        index, count: its place in the row; the first embeds, the last has norm and head.
        layers: the decoder layers that it holds, skipped sublayers included.
    """

    index: int
    count: int
    layers: range

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def last(self) -> bool:
        return self.index == self.count - 1


def split(layers: Seq[int], head: int, count: int) -> tuple[range, ...]:
    """Cuts decoder layers into `count` runs so that the most expensive one is as cheap as can be.

    Args:
        layers: cost of each; head: cost of what follows the last, which the last run pays.

    Raises:
        ConfigurationError: there are fewer layers than parts.
    """
    total = len(layers)
    if not 1 <= count <= total:
        raise ConfigurationError(
            f"a model of {total} layers can be split into 1 to {total} shards, not {count}"
        )
    before = list(accumulate(layers, initial=0))

    @cache
    def cheapest(start: int, parts: int) -> tuple[int, tuple[int, ...]]:
        """The highest cost of a run from `start` on, and where the runs end."""
        if parts == 1:
            return before[total] - before[start] + head, (total,)
        options = []
        for end in range(start + 1, total - parts + 2):
            highest, ends = cheapest(end, parts - 1)
            options.append((max(before[end] - before[start], highest), (end, *ends)))
        return min(options)

    ends = cheapest(0, count)[1]
    return tuple(range(a, b) for a, b in zip((0, *ends), ends, strict=False))


def make_shard(model: nn.Module, plan: LayerPlan, index: int, count: int) -> Shard:
    """Part `index` of `count` of a model whose skipped sublayers are gone; weights may be missing.

    Raises:
        ConfigurationError: there is no such part.
    """
    if not 0 <= index < count:
        raise ConfigurationError(f"there is no shard {index} of {count}: they count from 0")
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    layers = [
        sum(_cost(part, plan.precision) for part in (layer.self_attn, layer.mlp))
        for layer in decoder.layers
    ]
    head = _cost(model.get_output_embeddings(), plan.head_precision)  # type: ignore[operator]
    return Shard(index, count, split(layers, head, count)[index])


def _cost(sublayer: nn.Module, precision: HeadPrecision) -> int:
    """Bytes of the weights that a step reads, and the sublayer's other costs as bytes; 0 for a
    skipped one."""
    weights = [p for p in sublayer.parameters() if p.ndim == 2]
    if not weights:
        return 0
    if precision == "screened":
        # Every shard must come to the same split, and only the last one knows the rank.
        vocab, hidden = weights[0].shape
        return _SUBLAYER_BYTES + screened_bytes(vocab, hidden, likely_rank(hidden))
    bits = sum(p.numel() * _BITS.get(precision, 8 * p.element_size()) for p in weights)
    return _SUBLAYER_BYTES + bits // 8


def cut(model: nn.Module, shard: Shard) -> None:
    """Replaces what other shards hold, so that its weights are not parameters of `model`.

    The final norm is what the decoder has beside embedding and layers.
    """
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    for index in range(len(decoder.layers)):
        if index not in shard.layers:
            decoder.layers[index] = _Elsewhere()
    embedding = decoder.get_input_embeddings()
    if not shard.first:
        decoder.layers[shard.layers.start - 1] = _Inlet()
        model.set_input_embeddings(nn.Identity())  # type: ignore[operator]
    if not shard.last:
        for name, child in list(decoder.named_children()):
            if child not in (embedding, decoder.layers) and any(True for _ in child.parameters()):
                setattr(decoder, name, nn.Identity())
        model.set_output_embeddings(nn.Identity())  # type: ignore[operator]


class _Elsewhere(nn.Module):
    """A decoder layer of another shard: hands the rows on."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


class _Inlet(nn.Module):
    """Stands before a shard's first layer: what comes out of it is what came over the wire.

    A model that scales its embeddings thus does so once, on the first shard.
    """

    def forward(self, *_: Any, **kwargs: Any) -> torch.Tensor:
        context: ForwardContext = kwargs[CONTEXT]
        assert context.hidden is not None, "the rows of a later shard come from the one before it"
        return context.hidden
