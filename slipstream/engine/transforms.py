"""Transforms of a `transformers` model: sublayers skipped before its weights are read, layers
fused and packed after. The modelling code stays the library's; a layer that no transform knows
runs as it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slipstream.core.layer_plan import LayerPlan, Precision, Skips
from slipstream.engine.fused import FusedAttention, FusedBlock, FusedMlp, FusedNorm
from slipstream.engine.linear import converted
from slipstream.engine.screened_head import converted_head

# Attention of these classes is: three projections, optional norms of q and k per head, rotation
# of whole heads by halves, attention, output projection.
_FUSABLE = ("Llama", "Mistral", "Qwen2", "Qwen3")
_FUSABLE_ATTENTION = {f"{family}Attention" for family in _FUSABLE}
_FUSABLE_MLP = {f"{family}MLP" for family in _FUSABLE}
_FUSABLE_NORM = {f"{family}RMSNorm" for family in _FUSABLE}
_FUSABLE_LAYER = {f"{family}DecoderLayer" for family in _FUSABLE}


class _Nothing(nn.Module):
    """Stands for a skipped sublayer: adds nothing to the residual."""

    def __init__(self, *, returns_pair: bool) -> None:
        super().__init__()
        self._returns_pair = returns_pair

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> Any:
        nothing = hidden_states.new_zeros(())
        return (nothing, None) if self._returns_pair else nothing


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    layers: nn.ModuleList = model.get_decoder().layers  # type: ignore[operator]
    return layers


def skippable(layer: nn.Module) -> bool:
    """Whether the layer's sublayers can be left out one by one.

    Elsewhere a norm serves both of them, or stands behind them: it cannot go with one.
    """
    return hasattr(layer, "input_layernorm") and hasattr(layer, "post_attention_layernorm")


def stand_ins(layer: nn.Module, part: str) -> dict[str, nn.Module]:
    """What takes the place of a skipped sublayer and of the norms that serve it alone.

    Args:
        part: attention or mlp.

    Returns:
        Modules by their name in the layer.
    """
    # Gemma wraps each sublayer in a norm before and a norm after; the others have one before.
    wrapped = hasattr(layer, "pre_feedforward_layernorm")
    if part == "attention":
        norms = ["input_layernorm"] + ["post_attention_layernorm"] * wrapped
        return {"self_attn": _Nothing(returns_pair=True)} | {n: nn.Identity() for n in norms}
    norms = (
        ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        if wrapped
        else ["post_attention_layernorm"]
    )
    return {"mlp": _Nothing(returns_pair=False)} | {n: nn.Identity() for n in norms}


def skip_sublayers(model: nn.Module, skips: Skips) -> None:
    """Replaces skipped sublayers, so that their weights are never read."""
    for index, layer in enumerate(decoder_layers(model)):
        for part, skipped in (("attention", skips.attention), ("mlp", skips.mlp)):
            if index in skipped:
                for name, module in stand_ins(layer, part).items():
                    setattr(layer, name, module)


def _convert_parts(layer: nn.Module, precision: Precision) -> None:
    """Fuses the sublayers that are known; converts the linear layers of the others one by one."""
    for name, child in list(layer.named_children()):
        kind = type(child).__name__
        if kind in _FUSABLE_ATTENTION:
            setattr(layer, name, FusedAttention(child, precision))
        elif kind in _FUSABLE_MLP:
            setattr(layer, name, FusedMlp(child, precision))
    for parent in list(layer.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, converted(child, precision))


@torch.no_grad()
def convert_layers(model: nn.Module, plan: LayerPlan, prepare: Callable[[nn.Module], None]) -> None:
    """Packs and quantizes the sublayers in place; `prepare` is called with a layer before it is
    converted, to read its weights."""
    for layer in decoder_layers(model):
        prepare(layer)
        _convert_parts(layer, plan.precision)


@torch.no_grad()
def optimize(model: nn.Module, plan: LayerPlan, head_basis: Path | None = None) -> None:
    """Fuses a model whose sublayers are converted in place, and converts its head."""
    layers = decoder_layers(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in _FUSABLE_NORM:
                setattr(parent, name, FusedNorm(child))
    for index, layer in enumerate(layers):
        parts = dict(layer.named_children())
        known = isinstance(parts.get("self_attn"), FusedAttention | _Nothing)
        known &= isinstance(parts.get("mlp"), FusedMlp | _Nothing)
        if known and type(layer).__name__ in _FUSABLE_LAYER:
            layers[index] = FusedBlock(layer)
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    if isinstance(head, nn.Linear):  # a part of a model may have none
        head = converted_head(head, plan.head_precision, head_basis)
        model.set_output_embeddings(head)  # type: ignore[operator]
