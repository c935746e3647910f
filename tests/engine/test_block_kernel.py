"""A layer in one compiled call against the same layer part by part."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.engine import integer_kernel
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.engine.skips import SkipSet
from slipstream.engine.transforms import decoder_layers

pytestmark = pytest.mark.skipif(
    not integer_kernel.available(), reason="this CPU has no integer dot products"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        dtype="bfloat16",
    )
    path = tmp_path_factory.mktemp("block")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def _logits(runner: ModelRunner) -> list[torch.Tensor]:
    """Of several steps of three sequences side by side, from 1 to 8 rows each."""
    tables = [runner.pool.allocate(100) for _ in range(3)]
    for k, table in enumerate(tables):
        runner.forward([Segment([3 + k] * (9 + 11 * k), 0, table, 1)])
    steps = []
    for rows in (1, 2, 5, 8):
        tokens = list(range(10, 10 + rows))
        segments = [Segment(tokens, 9 + 11 * k, t, rows) for k, t in enumerate(tables)]
        steps.append(runner.forward(segments).clone())
    for table in tables:
        runner.pool.release(table)
    return steps


@pytest.mark.parametrize("precision", ["int4", "int8", "w8a8"])
@pytest.mark.parametrize(
    "skips",
    [Skips(), Skips(frozenset({1, 2}), frozenset({2, 3})), Skips(frozenset(range(4)), frozenset())],
    ids=["whole", "some", "no attention"],
)
def test_same_bits_as_part_by_part(folder, precision, skips) -> None:
    """With sublayers left out or not: one call gives the logits of the parts, bit for bit."""
    plan = LayerPlan(precision, "int8")
    runner = ModelRunner(load_model(folder, plan=plan), 1 << 22)
    SkipSet(runner.loaded.model).use(skips)
    layers = decoder_layers(runner.loaded.model)
    assert all(layer._layer is not None for layer in layers)
    compiled = _logits(runner)
    for layer in layers:
        layer._layer = None
    assert all(map(torch.equal, compiled, _logits(runner)))


def test_sublayers_that_were_never_loaded(folder) -> None:
    """A layer of which only one part was loaded runs compiled, too, with the same bits."""
    plan = LayerPlan("int4", "int8", frozenset({0}), frozenset({1, 3}))
    runner = ModelRunner(load_model(folder, plan=plan), 1 << 22)
    layers = decoder_layers(runner.loaded.model)
    assert all(layer._layer is not None for layer in layers)
    compiled = _logits(runner)
    for layer in layers:
        layer._layer = None
    assert all(map(torch.equal, compiled, _logits(runner)))


def test_other_layers_run_as_before(folder) -> None:
    """A layer in bfloat16 has no integer products, and so no compiled call."""
    runner = ModelRunner(load_model(folder), 1 << 22)
    assert all(layer._layer is None for layer in decoder_layers(runner.loaded.model))
