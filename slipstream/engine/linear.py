"""Linear layers that cost what the arithmetic costs: packed bfloat16, int8 and int4.

Each class replaces an `nn.Linear` at load time and computes the same product, at its precision.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import nn

from slipstream.core.layer_plan import Precision
from slipstream.engine import integer_kernel, kernels
from slipstream.engine.integer_tiles import GROUP, TILE

# Bits of weights and of activations in the integer kernel; None: as the number of rows allows.
_INTEGER_BITS: dict[Precision, tuple[int, int | None]] = {
    "int4": (4, None),
    "int8": (8, None),
    "w8a8": (8, 8),
}
# Rows that are packed at once: a multiple of the kernel's tile.
_BLOCK_ROWS = 256 * TILE
# torch's int4 kernel takes longer than int8 from here on.
_INT4_MOST_ROWS = 8


@functools.cache
def _onednn_bf16() -> bool:
    """Whether this CPU and this build have oneDNN's bfloat16 products over packed weights."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


class PackedLinear(nn.Module):
    """bfloat16 on CPU, the weight laid out once as oneDNN wants it instead of at every call."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bytes = weight.numel() * 2
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 8)
        self._bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


class Int8Linear(nn.Module):
    """int8 where those instructions or the shape are missing: oneDNN's, one scale per output row,
    activations 8 bit per token (zero point 128), symmetric.

    One scale for each token keeps a loud token from drowning the others in a batch.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bytes = weight.numel()
        scale = weight.float().abs().amax(1).clamp_min(1e-12) / 127
        quantized = (weight.float() / scale[:, None]).round_().to(torch.int8)
        self._scale, self._bias = scale, bias
        self._on_cpu = weight.device.type == "cpu"
        if self._on_cpu:
            self._zeros = torch.zeros(self.out_features, dtype=torch.int64)
            self._weight = torch.ops.onednn.qlinear_prepack(quantized, None)
        else:
            self._weight = quantized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._on_cpu:
            weight = self._weight.to(x.dtype) * self._scale[:, None].to(x.dtype)
            return F.linear(x, weight, self._bias)
        rows = x.reshape(-1, self.in_features)
        # A vector takes the kernel longer than a small matrix does.
        count = max(rows.shape[0], 4)
        quantized = torch.full((count, self.in_features), 128, dtype=torch.uint8)
        scales = torch.empty(rows.shape[0])
        rows = rows.to(torch.bfloat16).contiguous()
        kernels.quantize_rows(rows.data_ptr(), quantized.data_ptr(), scales.data_ptr(), *rows.shape)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, 128, self._weight, self._scale, self._zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        out = torch.empty((rows.shape[0], self.out_features), dtype=torch.bfloat16)
        kernels.scale_rows(product.data_ptr(), scales.data_ptr(), out.data_ptr(), *out.shape)
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self._bias is None else out + self._bias


def quantized_groups(
    weight: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Asymmetric quantization in groups of 32 input features.

    Returns:
        q: int32 [out, in] in 0 to 2**bits - 1; scale, low: float32 [out, in / 32];
        w ~ q * scale + low.
    """
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)
    most = 2**bits - 1
    scale = ((high - low) / most).clamp_min(1e-12)
    # The least value is stored in bfloat16: codes count from what will be added back.
    low = low.to(torch.bfloat16).float()
    scale = scale.to(torch.bfloat16).float()
    q = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, most)
    return q.to(torch.int32).view(weight.shape), scale, low


def int4_error(weight: torch.Tensor) -> float:
    """Relative error (Frobenius) that int4 would do to `weight`; about 0 for a 4-bit checkpoint."""
    q, scale, low = quantized_groups(weight, 4)
    back = q.view(*scale.shape, -1) * scale[..., None] + low[..., None]
    return float((back.view(weight.shape) - weight.float()).norm() / weight.float().norm())


def packed_groups(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes a weight and lays it out for the integer kernel (`integer_kernel.pack`).

    A block of rows at a time: on the way a weight takes some 16 bytes. The layout is by rows.
    """
    blocks = [
        integer_kernel.pack(*quantized_groups(block, bits), bits)
        for block in weight.split(_BLOCK_ROWS)
    ]
    weights, scales = zip(*blocks, strict=True)
    return torch.cat(weights), torch.cat(scales)


class GroupedLinear(nn.Module):
    """Weights of 4 or 8 bits in groups of 32, in the CPU's integer dot products.

    Args:
        activation_bits: 8 or 16 for any number of rows; None: 16 for few rows, 8 for many.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: int,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight, self._scales = packed_groups(weight, bits)
        self.bias = bias
        self.product = torch.tensor(
            integer_kernel.describe(
                self._weight, self._scales, self.out_features, self.in_features, bits,
                activation_bits,
            )
        )  # fmt: skip
        self.bytes = self._weight.numel() + self._scales.numel() * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        out = integer_kernel.multiply(rows, self.product, self.out_features)
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    @staticmethod
    def fits(weight: torch.Tensor) -> bool:
        """Whether the kernel takes this shape, on this machine."""
        out_features, in_features = weight.shape
        whole = in_features % GROUP == 0 and out_features % TILE == 0
        return whole and weight.device.type == "cpu" and integer_kernel.available()


class ExpandedInt4Linear(nn.Module):
    """int4 where those instructions are missing: torch's kernel, over float activations.

    It unpacks the weights again for every few rows, so many rows take int8 instead.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        q, scale, low = quantized_groups(weight, 4)
        # The kernel's convention: w = (q - 8) * scale + zero, both bfloat16, [groups, out, 2].
        pairs = torch.stack((scale, low + 8 * scale), dim=-1).transpose(0, 1)
        self._scales = pairs.contiguous().to(torch.bfloat16)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
        self._bias = bias
        self._many = Int8Linear(weight, bias)
        self.bytes = weight.numel() // 2 + self._scales.numel() * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        if rows.shape[0] > _INT4_MOST_ROWS:
            return self._many.forward(x)
        out: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self._weight, GROUP, self._scales
        )
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self._bias is None else out + self._bias

    @staticmethod
    def fits(weight: torch.Tensor) -> bool:
        """Whether torch's kernel takes this shape, on this device."""
        out_features, in_features = weight.shape
        whole = in_features % GROUP == 0 and out_features % 64 == 0
        return whole and weight.device.type == "cpu"


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision) -> nn.Module:
    """The fastest layer that computes `x @ weight.T + bias` at `precision`.

    Args:
        weight: [out, in], bias: [out] or None, in the model's dtype and on its device.
    """
    if precision != "native" and GroupedLinear.fits(weight):
        return GroupedLinear(weight, bias, *_INTEGER_BITS[precision])
    if precision == "int4" and ExpandedInt4Linear.fits(weight):
        return ExpandedInt4Linear(weight, bias)
    if precision != "native":
        return Int8Linear(weight, bias)
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and _onednn_bf16():
        return PackedLinear(weight, bias)
    linear = nn.Linear(1, 1, bias=False, device="meta")
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def joined(linears: list[nn.Linear], precision: Precision) -> nn.Module:
    """Several layers with the same input as one; all have a bias or none has."""
    weight = torch.cat([linear.weight.data for linear in linears])
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    assert len(biases) in {0, len(linears)}, "some of the joined layers have a bias"
    return make_linear(weight, torch.cat(biases) if biases else None, precision)


def converted(linear: nn.Linear, precision: Precision) -> nn.Module:
    bias = None if linear.bias is None else linear.bias.data
    return make_linear(linear.weight.data, bias, precision)


def integer_product(linear: nn.Module) -> torch.Tensor | None:
    """The product of a layer that is nothing but one in the integer kernel, else None."""
    plain = isinstance(linear, GroupedLinear) and linear.bias is None
    return linear.product if plain else None  # type: ignore[return-value]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights that `model` holds, packed ones included. Tied ones count once."""
    packed = sum(int(getattr(module, "bytes", 0)) for module in model.modules())
    parameters = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    return packed + sum(parameters.values())
