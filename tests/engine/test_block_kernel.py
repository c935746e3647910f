"""All layers in one compiled call, layers part by part, and the library's model: the same bits."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.engine import integer_kernel
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.runner import ModelRunner
from slipstream.engine.transforms import decoder_layers

needs_integers = pytest.mark.skipif(
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
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    path = tmp_path_factory.mktemp("block")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def _batches(tables: list[BlockTable]) -> list[list[Segment]]:
    """Prompts of three sequences, then steps of 1 to 40 rows: of all side by side, of one alone.

    One sequence goes beyond the positions that rotations are first computed for.
    """
    places = list(zip([9, 20, 1020], tables, strict=True))
    batches = [[Segment([3 + start % 7] * start, 0, table, 1)] for start, table in places]
    for rows in (1, 2, 5, 8, 32, 40):
        tokens = list(range(10, 10 + rows))
        batches.append([Segment(tokens, start, table, rows) for start, table in places])
        batches.append([Segment(tokens, *places[2], 1)])
    return batches


def _results(runners: list[ModelRunner]) -> list[torch.Tensor]:
    """Of a model in one or more shards."""
    pool = runners[0].pool
    tables = [pool.allocate(1100) for _ in range(3)]
    steps = []
    for batch in _batches(tables):
        rows = None
        for runner in runners:
            rows = runner.forward(batch, rows).clone()
        steps.append(rows)
    for table in tables:
        pool.release(table)
    return steps


def _check_same_bits(runners: list[ModelRunner], compiled: bool) -> None:
    decoders = [runner._decoder for runner in runners]
    assert all(decoder._compiled == compiled for decoder in decoders)
    one_call = _results(runners)
    for decoder in decoders:
        decoder._compiled = False
    assert all(map(torch.equal, one_call, _results(runners)))
    for runner in runners:
        runner._decoder = None
    assert all(map(torch.equal, one_call, _results(runners)))


@needs_integers
@pytest.mark.parametrize("precision", ["int4", "int8", "w8a8"])
def test_same_bits_with_integer_products(folder, precision) -> None:
    """Integer products: one compiled call gives the logits of the parts, bit for bit."""
    loaded = load_model(folder, plan=LayerPlan(precision, "int8"))
    _check_same_bits([ModelRunner(loaded, 1 << 22)], compiled=True)


@needs_integers
@pytest.mark.parametrize(
    "skips",
    [
        Skips(frozenset({1, 2}), frozenset({2, 3})),
        Skips(frozenset(range(4)), frozenset()),
        Skips(frozenset(range(4)), frozenset(range(4))),
    ],
    ids=["some", "no attention", "all"],
)
def test_same_bits_with_sublayers_left_out(folder, skips) -> None:
    """Sublayers left out from one pass to the next are left out of the compiled call, and come
    back into it."""
    loaded = load_model(folder, plan=LayerPlan("int4", "int8"))
    runner = ModelRunner(loaded, 1 << 22)
    whole = _results([runner])
    loaded.skips.use(skips)
    assert not any(map(torch.equal, whole, _results([runner])))
    loaded.skips.use(Skips())
    assert all(map(torch.equal, whole, _results([runner])))
    loaded.skips.use(skips)
    _check_same_bits([runner], compiled=True)


@needs_integers
def test_sublayers_that_were_never_loaded(folder) -> None:
    """A layer of which one part or none was loaded runs compiled, too, with the same bits."""
    plan = LayerPlan("int4", "int8", frozenset({0, 2}), frozenset({1, 2}))
    _check_same_bits([ModelRunner(load_model(folder, plan=plan), 1 << 22)], compiled=True)


@pytest.mark.parametrize("precision", [pytest.param("int4", marks=needs_integers), "native"])
def test_same_bits_in_shards(folder, precision) -> None:
    """Shards without embedding, or without norm and head, give what the library's model does."""
    plan = LayerPlan(precision)
    runners = [ModelRunner(load_model(folder, plan=plan, shard=(i, 3)), 1 << 22) for i in range(3)]
    whole = ModelRunner(load_model(folder, plan=plan), 1 << 22)
    assert all(map(torch.equal, _results(runners), _results([whole])))
    _check_same_bits(runners, compiled=precision == "int4")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_other_layers_in_a_loop(folder, dtype) -> None:
    """Layers without integer products run one by one, and as the library would run them."""
    loaded = load_model(folder, dtype=dtype)
    assert all(layer.description is None for layer in decoder_layers(loaded.model))
    _check_same_bits([ModelRunner(loaded, 1 << 23)], compiled=False)
