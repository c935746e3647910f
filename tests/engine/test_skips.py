"""Sublayers left out at run time: the passes of a model loaded without them, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.golden.families import VOCAB, build, build_config

SETS = {
    "some": Skips(frozenset({1, 3}), frozenset({0, 3})),
    "all attention": Skips(frozenset(range(4))),
    "all MLP": Skips(mlp=frozenset(range(4))),
    "a whole layer": Skips(frozenset({2}), frozenset({2})),
}
TOKENS = [(7 * i + 3) % VOCAB for i in range(60)]


def _passes(runner: ModelRunner) -> torch.Tensor:
    """Logits of a prompt, of single rows, and of several rows, on a sequence of its own."""
    table = runner.pool.allocate(len(TOKENS))
    assert table is not None
    borders = (0, 40, 41, 42, 50, 60)
    logits = [
        runner.forward([Segment(TOKENS[a:b], a, table, b - a)]).clone()
        for a, b in itertools.pairwise(borders)
    ]
    runner.pool.release(table)
    return torch.cat(logits)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", "native"), ("bfloat16", "native"), ("bfloat16", "int8")]
)
def test_left_out_as_if_never_loaded(tmp_path: Path, family, dtype, precision) -> None:
    """Switched from set to set and back, every pass is that of a model loaded so, bit for bit."""
    folder = build(family, tmp_path)
    plan = LayerPlan(precision=precision)
    runner = ModelRunner(load_model(folder, dtype=dtype, plan=plan), 1 << 20)
    full = _passes(runner)
    for skips in SETS.values():
        runner.loaded.skips.use(skips)
        loaded = load_model(folder, dtype=dtype, plan=plan.with_skips(skips))
        without = _passes(ModelRunner(loaded, 1 << 20))
        assert torch.equal(_passes(runner), without)
        assert not torch.equal(without, full)
    with runner.loaded.skips.using(Skips()):
        assert torch.equal(_passes(runner), full)
    assert torch.equal(_passes(runner), without)


def test_more_is_left_out_of_a_plan_that_skips(tmp_path: Path) -> None:
    """Sets come on top of the plan; an empty set does not bring back what was never loaded."""
    folder = build("llama", tmp_path)
    plan = LayerPlan(skip_attention=frozenset({1}), skip_mlp=frozenset({2}))
    runner = ModelRunner(load_model(folder, plan=plan), 1 << 20)
    before = _passes(runner)
    runner.loaded.skips.use(Skips(frozenset({1, 3}), frozenset({0})))
    both = plan.with_skips(Skips(frozenset({1, 3}), frozenset({0, 2})))
    assert torch.equal(
        _passes(runner), _passes(ModelRunner(load_model(folder, plan=both), 1 << 20))
    )
    runner.loaded.skips.use(Skips())
    assert torch.equal(_passes(runner), before)


def test_a_skipped_attention_leaves_keys_and_values_alone(tmp_path: Path) -> None:
    """Rows of a pass without some attentions change the pool in the other layers only."""
    runner = ModelRunner(load_model(build("llama", tmp_path)), 1 << 20)
    table = runner.pool.allocate(16)
    assert table is not None
    runner.forward([Segment(TOKENS[:16], 0, table, 0)])
    before = [keys[table.slots].clone() for keys in runner.pool.keys]
    with runner.loaded.skips.using(Skips(attention=frozenset({1, 2}))):
        runner.forward([Segment(TOKENS[16:26], 6, table, 0)])
    same = [
        torch.equal(keys[table.slots], b) for keys, b in zip(runner.pool.keys, before, strict=True)
    ]
    assert same == [False, True, True, False]


def test_what_cannot_be_left_out_is_refused(tmp_path: Path) -> None:
    """A layer that does not exist, and layers whose norm serves both sublayers."""
    llama = load_model(build("llama", tmp_path / "llama"))
    with pytest.raises(ConfigurationError, match="does not exist"):
        llama.skips.use(Skips(mlp=frozenset({4})))
    phi = load_model(build_config("PhiConfig", {}, tmp_path / "phi"))
    with pytest.raises(ConfigurationError, match="cannot be skipped"):
        phi.skips.use(Skips(attention=frozenset({1})))
    assert llama.skips.current == phi.skips.current == Skips()
