"""Transforms of a `transformers` model: sublayers skipped before its weights are read, layers
fused and packed after. The modelling code stays the library's; a layer that no transform knows
runs as it came."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slipstream.core.layer_plan import LayerPlan, Precision
from slipstream.engine.attention import CONTEXT, ForwardContext, attend
from slipstream.engine.linear import make_linear

# Attention of these classes is: three projections, optional norms of q and k per head, rotation
# of whole heads by halves, attention, output projection.
_FUSABLE_ATTENTION = {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"}
_FUSABLE_MLP = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}
_FUSABLE_NORM = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


class _Nothing(nn.Module):
    """Stands for a skipped sublayer: adds nothing to the residual."""

    def __init__(self, *, returns_pair: bool) -> None:
        super().__init__()
        self._returns_pair = returns_pair

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> Any:
        nothing = hidden_states.new_zeros(())
        return (nothing, None) if self._returns_pair else nothing


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    layers: nn.ModuleList = model.get_decoder().layers  # type: ignore[operator, union-attr]
    return layers


def skip_sublayers(model: nn.Module, plan: LayerPlan) -> None:
    """Replaces the plan's skipped sublayers, and the norms that serve them alone."""
    for index, layer in enumerate(decoder_layers(model)):
        # Gemma wraps each sublayer in a norm before and a norm after; the others have one before.
        wrapped = hasattr(layer, "pre_feedforward_layernorm")
        if index in plan.skip_attention:
            layer.self_attn = _Nothing(returns_pair=True)
            layer.input_layernorm = nn.Identity()
            if wrapped:
                layer.post_attention_layernorm = nn.Identity()
        if index in plan.skip_mlp:
            layer.mlp = _Nothing(returns_pair=False)
            if wrapped:
                layer.pre_feedforward_layernorm = nn.Identity()
                layer.post_feedforward_layernorm = nn.Identity()
            else:
                layer.post_attention_layernorm = nn.Identity()


class FusedNorm(nn.Module):
    """RMSNorm (arXiv 1910.07467) in one call."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight: torch.Tensor = norm.weight
        self._shape = tuple(self.weight.shape)
        self._eps: float = norm.variance_epsilon  # type: ignore[assignment]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, self._shape, self.weight, self._eps)


class FusedMlp(nn.Module):
    """Gated MLP with gate and up in one product."""

    def __init__(self, mlp: Any, precision: Precision) -> None:
        super().__init__()
        self._gate_up = _joined([mlp.gate_proj, mlp.up_proj], precision)
        self._down = _converted(mlp.down_proj, precision)
        self._act = mlp.act_fn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self._gate_up(hidden_states).chunk(2, dim=-1)
        out: torch.Tensor = self._down(self._act(gate) * up)
        return out


class FusedAttention(nn.Module):
    """Rotary attention with q, k and v in one product and one rotation."""

    def __init__(self, attention: Any, precision: Precision) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self._dim: int = attention.head_dim
        self._heads = attention.q_proj.out_features // self._dim
        self._kv_heads = attention.k_proj.out_features // self._dim
        self._scaling: float = attention.scaling
        self._window: int | None = getattr(attention, "sliding_window", None)
        if self._window is None and type(attention).__name__ == "MistralAttention":
            self._window = attention.config.sliding_window
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._qkv = _joined(projections, precision)
        self._out = _converted(attention.o_proj, precision)
        self._q_norm = getattr(attention, "q_norm", None)
        self._k_norm = getattr(attention, "k_norm", None)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        context: ForwardContext = kwargs[CONTEXT]
        shape = hidden_states.shape
        rotated = self._heads + self._kv_heads
        qkv = self._qkv(hidden_states).view(shape[1], rotated + self._kv_heads, self._dim)
        qk, value = qkv[:, :rotated], qkv[:, rotated:]
        if self._q_norm is not None and self._k_norm is not None:
            q, k = self._q_norm(qk[:, : self._heads]), self._k_norm(qk[:, self._heads :])
            qk = torch.cat((q, k), dim=1)
        cos, sin = _rope_tables(context, position_embeddings)
        half = self._dim // 2
        swapped = torch.cat((qk[..., half:], qk[..., :half]), dim=-1)
        qk = qk * cos + swapped * sin
        query, key = qk[:, : self._heads], qk[:, self._heads :]
        out = attend(context, self.layer_idx, query, key, value, self._scaling, self._window)
        return self._out(out.reshape(1, shape[1], -1)), None


def _rope_tables(
    context: ForwardContext, position_embeddings: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sign-folded sin, [rows, 1, head_dim], made once per forward pass.

    rotate_half(x) * sin equals swap_halves(x) * (sin with its first half negated).
    """
    cos, sin = position_embeddings
    if context.rope is None or context.rope[0] is not cos:
        signed = sin[0].clone()
        signed[:, : signed.shape[-1] // 2].neg_()
        context.rope = (cos, cos[0][:, None], signed[:, None])
    return context.rope[1], context.rope[2]


def _joined(linears: list[nn.Linear], precision: Precision) -> nn.Module:
    weight = torch.cat([linear.weight.data for linear in linears])
    biases = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat([b.data for b in biases]) if len(biases) == len(linears) else None
    assert bool(biases) == (bias is not None), "some of the joined projections have a bias"
    return make_linear(weight, bias, precision)


def _converted(linear: nn.Linear, precision: Precision) -> nn.Module:
    bias = None if linear.bias is None else linear.bias.data
    return make_linear(linear.weight.data, bias, precision)


@torch.no_grad()
def optimize(model: nn.Module, plan: LayerPlan) -> None:
    """Fuses, packs and quantizes a loaded model in place, layer by layer."""
    for layer in decoder_layers(model):
        for name, child in list(layer.named_children()):
            kind = type(child).__name__
            if kind in _FUSABLE_ATTENTION:
                setattr(layer, name, FusedAttention(child, plan.precision))
            elif kind in _FUSABLE_MLP:
                setattr(layer, name, FusedMlp(child, plan.precision))
        for parent in list(layer.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, _converted(child, plan.precision))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ in _FUSABLE_NORM:
                setattr(parent, name, FusedNorm(child))
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator, assignment]
    model.set_output_embeddings(_converted(head, plan.head_precision))  # type: ignore[operator]
