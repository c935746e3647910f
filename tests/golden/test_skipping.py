"""A layer plan's skipped sublayers contribute nothing, are never read, and have no KV."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from slipstream.core.errors import CheckpointError
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.golden.families import FAMILIES, VOCAB, build_config, reference_logits, reference_model
from tests.golden.ragged import run_ragged

FamilyDir = Callable[[str], Path]
PLANS = {
    "some": LayerPlan(skip_attention=frozenset({1, 3}), skip_mlp=frozenset({0, 3})),
    "first and last": LayerPlan(skip_attention=frozenset({0, 3}), skip_mlp=frozenset({0, 3})),
    "all attention": LayerPlan(skip_attention=frozenset(range(4))),
    "all MLP": LayerPlan(skip_mlp=frozenset(range(4))),
}


def _zeroed(module: Any, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def _sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (5, 37, 60)]


@functools.cache
def _reference(folder: Path, plan: str) -> list[torch.Tensor]:
    """Logits of the library's model with the outputs of the plan's sublayers set to zero."""
    model = reference_model(folder, torch.float32)
    for index, layer in enumerate(model.model.layers):
        if index in PLANS[plan].skip_attention:
            layer.self_attn.register_forward_hook(_zeroed)
        if index in PLANS[plan].skip_mlp:
            layer.mlp.register_forward_hook(_zeroed)
    return [reference_logits(model, tokens) for tokens in _sequences()]


def _run(folder: Path, plan: LayerPlan, optimized: bool) -> list[torch.Tensor]:
    runner = ModelRunner(
        load_model(folder, dtype="float32", plan=plan, optimized=optimized), 1 << 20
    )
    tables = [runner.pool.allocate(len(s)) for s in _sequences()]
    return run_ragged(runner, _sequences(), seed=2, tables=[t for t in tables if t is not None])


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_means_zeroed(
    family: str, plan: str, optimized: bool, family_dir: FamilyDir
) -> None:
    """Logits are those of the library's model with the outputs of these sublayers set to zero."""
    folder = family_dir(family)
    ours = _run(folder, PLANS[plan], optimized)
    for mine, theirs in zip(ours, _reference(folder, plan), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_weights_are_never_read(family: str, family_dir: FamilyDir) -> None:
    """Tensors read are those of the file without the skipped sublayers; KV is for the kept only."""
    folder, plan = family_dir(family), PLANS["some"]
    loaded = load_model(folder, plan=plan)
    with safe_open(folder / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    skipped = {f"model.layers.{i}.self_attn." for i in plan.skip_attention} | {
        f"model.layers.{i}.mlp." for i in plan.skip_mlp
    }
    assert not [n for n in loaded.tensors_read if n.startswith(tuple(skipped))]
    unread = saved - loaded.tensors_read
    norms = {n for n in unread if "layernorm" in n}
    assert unread - norms == {n for n in saved if n.startswith(tuple(skipped))}
    # The norm before a sublayer has no other use; Gemma has one behind it as well.
    each = 2 if family.startswith("gemma") else 1
    assert len(norms) == each * (len(plan.skip_attention) + len(plan.skip_mlp))
    layers = range(loaded.config.num_hidden_layers)
    assert loaded.kv_layers == tuple(i for i in layers if i not in plan.skip_attention)
    pool = ModelRunner(loaded, 1 << 20).pool
    assert len(pool.keys) == len(loaded.kv_layers)
    assert loaded.weight_bytes < load_model(folder).weight_bytes


@pytest.mark.parametrize("kind", ["PhiConfig", "CohereConfig", "Olmo2Config"])
def test_layers_whose_norms_are_shared_are_not_skipped(kind: str, tmp_path: Path) -> None:
    """Where a norm serves both sublayers, or follows them, the model loads but refuses skipping."""
    folder = build_config(kind, {}, tmp_path)
    load_model(folder)
    with pytest.raises(CheckpointError, match="cannot be skipped"):
        load_model(folder, plan=LayerPlan(skip_mlp=frozenset({1})))
