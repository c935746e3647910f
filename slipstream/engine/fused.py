"""Fused layers: the common decoder block in as few calls as it takes.

On a CPU in bfloat16 the stretches between the products run as compiled kernels, elsewhere as
tensor operations; both compute the same thing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slipstream.core.layer_plan import Precision
from slipstream.engine import attention_kernel, block_kernel, kernels
from slipstream.engine.attention import CONTEXT, ForwardContext, attend
from slipstream.engine.linear import converted, integer_product, joined


def compiled(weight: torch.Tensor) -> bool:
    """Whether the compiled kernels serve a layer with this weight."""
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


class FusedNorm(nn.Module):
    """RMSNorm (arXiv 1910.07467) in one call."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight: torch.Tensor = norm.weight  # type: ignore[assignment]
        self._size = self.weight.numel()
        self.eps: float = norm.variance_epsilon  # type: ignore[assignment]
        self._compiled = compiled(self.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self._compiled:
            return F.rms_norm(hidden_states, (self._size,), self.weight, self.eps)
        x = hidden_states.contiguous()
        out = torch.empty_like(x)
        rows = x.numel() // self._size
        kernels.rms_norm(
            x.data_ptr(), self.weight.data_ptr(), out.data_ptr(), rows, self._size, self.eps
        )
        return out

    def add(self, residual: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Adds `delta` to `residual` in place and returns the norm of the sum."""
        if not self._compiled:
            return self.forward(residual.add_(delta))
        out = torch.empty_like(delta)
        rows = delta.numel() // self._size
        kernels.add_rms_norm(
            residual.data_ptr(), delta.data_ptr(), self.weight.data_ptr(), out.data_ptr(),
            rows, self._size, self.eps,
        )  # fmt: skip
        return out


class FusedMlp(nn.Module):
    """Gated MLP with gate and up in one product."""

    def __init__(self, mlp: Any, precision: Precision) -> None:
        super().__init__()
        self.size = mlp.gate_proj.out_features
        # SiLU by name of its class: the library has several spellings of it.
        self._compiled = compiled(mlp.gate_proj.weight) and "SiLU" in type(mlp.act_fn).__name__
        self._gate_up = joined([mlp.gate_proj, mlp.up_proj], precision)
        self._down = converted(mlp.down_proj, precision)
        self._act = mlp.act_fn

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        both = self._gate_up.forward(hidden_states)
        if self._compiled:
            mixed = both.new_empty((*both.shape[:-1], self.size))
            rows = mixed.numel() // self.size
            kernels.silu_mul(both.data_ptr(), mixed.data_ptr(), rows, self.size)
        else:
            gate, up = both.chunk(2, dim=-1)
            mixed = self._act(gate) * up
        out: torch.Tensor = self._down.forward(mixed)
        return out

    def products(self) -> list[torch.Tensor | None]:
        """Its integer products; None in place of what runs otherwise."""
        if not self._compiled:
            return [None, None]
        return [integer_product(self._gate_up), integer_product(self._down)]


class FusedAttention(nn.Module):
    """Rotary attention with q, k and v in one product and one rotation."""

    def __init__(self, attention: Any, precision: Precision) -> None:
        super().__init__()
        self.layer_idx: int = attention.layer_idx
        self._dim: int = attention.head_dim
        self._heads = attention.q_proj.out_features // self._dim
        self._kv_heads = attention.k_proj.out_features // self._dim
        self.scaling: float = attention.scaling
        self._window: int | None = getattr(attention, "sliding_window", None)
        if self._window is None and type(attention).__name__ == "MistralAttention":
            self._window = attention.config.sliding_window
        self._compiled = compiled(attention.q_proj.weight)
        if self._compiled:
            attention_kernel.prepare()
        self._qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj], precision)
        self._out = converted(attention.o_proj, precision)
        self._q_norm = getattr(attention, "q_norm", None)
        self._k_norm = getattr(attention, "k_norm", None)

    def products(self) -> list[torch.Tensor | None]:
        """Its integer products; None in place of what runs otherwise."""
        if not self._compiled or self._q_norm is not None:
            return [None, None]
        return [integer_product(self._qkv), integer_product(self._out)]

    @property
    def geometry(self) -> tuple[int, int, int, int]:
        """Heads, KV heads, dimension of a head, and the window or 0."""
        return self._heads, self._kv_heads, self._dim, self._window or 0

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        context: ForwardContext = kwargs[CONTEXT]
        rows, rotated = hidden_states.shape[1], self._heads + self._kv_heads
        qkv = self._qkv.forward(hidden_states).view(rows, rotated + self._kv_heads, self._dim)
        if self._q_norm is not None and self._k_norm is not None:
            qkv[:, : self._heads] = self._q_norm(qkv[:, : self._heads])
            qkv[:, self._heads : rotated] = self._k_norm(qkv[:, self._heads : rotated])
        cos, sin = _rope_tables(context, position_embeddings)
        if self._compiled and rows <= attention_kernel.most_rows():
            out = self._attend_compiled(context, qkv, cos, sin)
        else:
            half = self._dim // 2
            qk = qkv[:, :rotated]
            swapped = torch.cat((qk[..., half:], qk[..., :half]), dim=-1)
            qk = qk * cos[:, None] + swapped * sin[:, None]
            query, key, value = qk[:, : self._heads], qk[:, self._heads :], qkv[:, rotated:]
            out = attend(context, self.layer_idx, query, key, value, self.scaling, self._window)
        return self._out.forward(out.reshape(1, rows, -1)), None

    def _attend_compiled(
        self, context: ForwardContext, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """qkv: [rows, heads + 2 * kv_heads, dim]; returns [rows, heads * dim]."""
        keys, values = context.pool.addresses[context.kv_index[self.layer_idx]]
        # Rows that only pad belong to no segment; zeros keep them finite.
        out = qkv.new_zeros((qkv.shape[0], self._heads * self._dim))
        attention_kernel.attend(
            qkv, cos, sin, keys, values, context.segment_table(), out, heads=self._heads,
            kv_heads=self._kv_heads, window=self._window, scaling=self.scaling,
        )  # fmt: skip
        return out


class FusedBlock(nn.Module):
    """A pre-norm decoder layer made of fused parts; changes the residual stream in place.

    Replaces a layer of which every part that is not skipped was fused.

    Attributes:
        attends, mixes: whether the coming passes run the attention and the MLP.
        has_attention, has_mlp: whether they were loaded at all.
        description: of `block_kernel`, where that serves this layer, else None.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.input_layernorm: FusedNorm = layer.input_layernorm
        self.self_attn: FusedAttention = layer.self_attn
        self.post_attention_layernorm: FusedNorm = layer.post_attention_layernorm
        self.mlp: FusedMlp = layer.mlp
        self.has_attention = self.attends = isinstance(layer.self_attn, FusedAttention)
        self.has_mlp = self.mixes = isinstance(layer.mlp, FusedMlp)
        self.description = self._describe()

    def _describe(self) -> torch.Tensor | None:
        attention, mlp = self.self_attn, self.mlp
        products: list[torch.Tensor | None] = [None] * 4
        if self.has_attention:
            products[:2] = attention.products()
        if self.has_mlp:
            products[2:] = mlp.products()
        wanted = [self.has_attention] * 2 + [self.has_mlp] * 2
        if [product is not None for product in products] != wanted or not any(wanted):
            return None
        norms = (self.input_layernorm, self.post_attention_layernorm)
        return block_kernel.describe(
            norms=(
                norms[0].weight if self.has_attention else None,
                norms[1].weight if self.has_mlp else None,
            ),
            width=mlp.size if self.has_mlp else 0,
            geometry=attention.geometry if self.has_attention else (0, 0, 0, 0),
            products=products,
            scaling=attention.scaling if self.has_attention else 1.0,
            eps=(getattr(norms[0], "eps", 0.0), getattr(norms[1], "eps", 0.0)),
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> torch.Tensor:
        # Methods, not calls of modules: the hooks that a call looks for are never there.
        if not self.attends:
            if not self.mixes:
                return hidden_states
            normed = self.post_attention_layernorm.forward(hidden_states)
            return hidden_states.add_(self.mlp.forward(normed))
        normed = self.input_layernorm.forward(hidden_states)
        delta = self.self_attn.forward(normed, position_embeddings, **kwargs)[0]
        if not self.mixes:
            return hidden_states.add_(delta)
        normed = self.post_attention_layernorm.add(hidden_states, delta)
        return hidden_states.add_(self.mlp.forward(normed))


def _rope_tables(
    context: ForwardContext, position_embeddings: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sign-folded sin, [rows, head_dim], made once per forward pass."""
    cos, sin = position_embeddings
    if context.rope is None or context.rope[0] is not cos:
        context.rope = (cos, cos[0].contiguous(), fold_sign(sin[0]))
    return context.rope[1], context.rope[2]


def fold_sign(sin: torch.Tensor) -> torch.Tensor:
    """rotate_half(x) * sin equals swap_halves(x) * (sin with its first half negated)."""
    signed = sin.clone()
    signed[..., : signed.shape[-1] // 2].neg_()
    return signed
