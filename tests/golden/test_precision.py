"""Quantized copies: close to the model, smaller, and exact where the weights are 4-bit already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine import integer_kernel
from slipstream.engine.automatic_plan import automatic_plan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.linear import GroupedLinear, int4_error, make_linear
from slipstream.engine.model_files import ModelFolder
from slipstream.engine.runner import ModelRunner
from tests.golden.families import FAMILIES, VOCAB, build_config
from tests.golden.ragged import run_ragged

FamilyDir = Callable[[str], Path]
INT8 = LayerPlan(precision="int8", head_precision="int8")
INT4 = LayerPlan(precision="int4", head_precision="int4")


def _logits(folder: Path, plan: LayerPlan, dtype: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    tokens = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (5, 60)]
    runner = ModelRunner(load_model(folder, dtype=dtype, plan=plan), 1 << 20)
    tables = [runner.pool.allocate(len(s)) for s in tokens]
    rows = run_ragged(runner, tokens, seed=2, tables=[t for t in tables if t is not None])
    return torch.cat(rows)


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def four_bit_grid(folder: Path) -> Path:
    """Sets every matrix to (q - 8) / 64 with q in 0..15; each group of 32 has both ends."""
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            q = torch.randint(0, 16, tensor.shape, generator=generator)
            q[:, ::32], q[:, 1::32] = 0, 15
            tensors[name] = ((q - 8) / 64).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_models_stay_close(family: str, dtype: str, family_dir: FamilyDir) -> None:
    """int8 is within 8% of the native logits and closer than int4; int4 is within 60%."""
    folder = family_dir(family)
    native = _logits(folder, LayerPlan(), dtype)
    int8 = _distance(_logits(folder, INT8, dtype), native)
    int4 = _distance(_logits(folder, INT4, dtype), native)
    assert int8 < 0.08
    assert int8 < int4 < 0.6


@pytest.mark.parametrize("plan", [INT8, INT4], ids=["int8", "int4"])
def test_quantized_models_are_smaller(plan: LayerPlan, family_dir: FamilyDir) -> None:
    """Weights held shrink, those of the output projection, too."""
    folder = family_dir("llama")
    native = load_model(folder, dtype="bfloat16").weight_bytes
    layers_only = LayerPlan(precision=plan.precision)
    with_head = load_model(folder, dtype="bfloat16", plan=plan).weight_bytes
    assert with_head < load_model(folder, dtype="bfloat16", plan=layers_only).weight_bytes < native


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_int4_of_a_4bit_matrix_is_the_matrix(rows: int, biased: bool) -> None:
    """A weight on a 4-bit grid gives the native product, up to the rounding of its output."""
    generator = torch.Generator().manual_seed(rows)
    q = torch.randint(0, 16, (128, 96), generator=generator)
    q[:, ::32], q[:, 1::32] = 0, 15
    weight = ((q - 8) / 64).to(torch.bfloat16)
    bias = torch.randn(128, generator=generator).to(torch.bfloat16) if biased else None
    x = torch.randn(rows, 96, generator=generator).to(torch.bfloat16)
    assert int4_error(weight) < 1e-6
    got = make_linear(weight, bias, "int4")(x)
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if bias is None else bias.double()
    )
    torch.testing.assert_close(got.double(), exact, rtol=2**-7, atol=0.02)


def test_the_automatic_plan_is_int4_only_where_that_is_free(tmp_path: Path) -> None:
    """Random weights get int8; the same model on a 4-bit grid gets int4; the head is int8."""
    folder = build_config("LlamaConfig", {}, tmp_path)
    assert automatic_plan(ModelFolder(folder)) == LayerPlan(precision="int8", head_precision="int8")
    four_bit_grid(folder)
    assert automatic_plan(ModelFolder(folder)) == LayerPlan(precision="int4", head_precision="int8")


def test_the_automatic_plan_takes_int8_where_int4_does_not_fit(tmp_path: Path) -> None:
    """Matrices whose rows do not divide into groups are not even measured."""
    differs = {"hidden_size": 48, "intermediate_size": 80, "head_dim": 12}
    folder = build_config("LlamaConfig", differs, tmp_path)
    plan = automatic_plan(ModelFolder(folder))
    assert plan.precision == "int8"
    assert _logits(folder, plan, "bfloat16").isfinite().all()


def test_int8_keeps_quiet_tokens_beside_loud_ones() -> None:
    """A row 1000 times louder in the same batch does not change a quiet row by one bit."""
    generator = torch.Generator().manual_seed(3)
    layer = make_linear(torch.randn(64, 96, generator=generator), None, "int8")
    quiet = torch.randn(1, 96, generator=generator)
    loud = 1000 * torch.randn(9, 96, generator=generator)
    for rows in (1, 3, 5, 9):
        # As many rows either way: few rows are multiplied at a higher precision than many.
        beside_loud, beside_itself = torch.cat((quiet, loud[:rows])), quiet.repeat(rows + 1, 1)
        assert torch.equal(layer(beside_loud)[:1], layer(beside_itself)[:1])


@pytest.mark.skipif(not integer_kernel.available(), reason="needs AVX-512 VNNI")
@pytest.mark.parametrize("activation_bits", [8, 16, None])
def test_fixed_activations_do_not_depend_on_the_rows(activation_bits: int | None) -> None:
    """With activation bits fixed, a row is bitwise the same whatever the number of rows and its
    place among them; left open, few and many rows differ."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(96, 64, generator=generator)
    layer = GroupedLinear(weight, None, 8, activation_bits)
    x = torch.randn(33, 64, generator=generator).to(torch.bfloat16)
    alone = torch.cat([layer(x[i : i + 1]) for i in range(len(x))])
    exact = x.double() @ weight.double().T
    assert (alone.double() - exact).norm() < 0.01 * exact.norm()
    for rows in (2, 3, 4, 5, 7, 8, 9, 16, 33):
        same = torch.equal(layer(x[:rows]), alone[:rows])
        same = same and torch.equal(layer(x[-rows:]), alone[-rows:])
        assert same == (activation_bits is not None or rows <= 4), rows
