"""A model in parts: the same logits bit for bit, and each part reads and keeps only its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.engine.shards import split
from tests.golden.families import FAMILIES, VOCAB
from tests.golden.ragged import run_ragged

FamilyDir = Callable[[str], Path]
SOME = LayerPlan(skip_attention=frozenset({1, 3}), skip_mlp=frozenset({0}))
KV_BYTES = 1 << 20


@dataclass
class Row:
    """Shards in a row, called as one runner. Their pools are alike, so one table serves all."""

    runners: list[ModelRunner]

    @classmethod
    def load(cls, folder: Path, count: int, **options: object) -> Row:
        parts = [load_model(folder, shard=(i, count), **options) for i in range(count)]
        return cls([ModelRunner(part, KV_BYTES) for part in parts])

    @property
    def pool(self):
        return self.runners[0].pool

    def forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        rows = None
        for runner in self.runners:
            rows = runner.forward(segments, rows)
        assert rows is not None
        return rows


def _logits(runner: Row | ModelRunner) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    tokens = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (5, 37, 60)]
    tables = [runner.pool.allocate(len(s)) for s in tokens]
    return run_ragged(runner, tokens, seed=2, tables=tables)


@pytest.mark.parametrize("optimized", [False, True], ids=["plain", "optimized"])
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_compute_what_the_whole_does(
    family: str, optimized: bool, family_dir: FamilyDir
) -> None:
    """Two and four shards in a row give the logits of the whole bit for bit, sublayers skipped."""
    options = {"dtype": "float32", "plan": SOME, "optimized": optimized}
    whole = _logits(ModelRunner(load_model(family_dir(family), **options), KV_BYTES))
    for count in (2, 4):
        parts = _logits(Row.load(family_dir(family), count, **options))
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("plan", [LayerPlan(precision="int4", head_precision="int8"), SOME])
def test_parts_in_bfloat16(plan: LayerPlan, family_dir: FamilyDir) -> None:
    """The compiled kernels and the quantized layers, too, and padded shapes."""
    folder = family_dir("llama-biased-scaled")
    runner = ModelRunner(load_model(folder, dtype="bfloat16", plan=plan), KV_BYTES)
    row = Row.load(folder, 3, dtype="bfloat16", plan=plan)
    for one in (runner, *row.runners):
        one.min_rows = one.query_multiple = 4
    for ours, theirs in zip(_logits(row), _logits(runner), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_reads_and_keeps_only_its_own(family: str, family_dir: FamilyDir) -> None:
    """Each tensor is read by one shard, a tied embedding at both ends; KV is for own layers."""
    folder = family_dir(family)
    whole = load_model(folder, plan=SOME)
    parts = [load_model(folder, plan=SOME, shard=(i, 3)) for i in range(3)]
    assert [i for part in parts for i in part.kv_layers] == list(whole.kv_layers)
    assert [i for part in parts for i in part.shard.layers] == list(
        range(whole.config.num_hidden_layers)
    )
    everything = [name for part in parts for name in part.tensors_read]
    shared = sorted(name for name in set(everything) if everything.count(name) > 1)
    with safe_open(folder / "model.safetensors", "pt") as file:
        tied = "lm_head.weight" not in file.keys()  # noqa: SIM118
    assert shared == (["model.embed_tokens.weight"] if tied else [])
    assert set(everything) == whole.tensors_read
    for part in parts:
        own = tuple(f"model.layers.{i}." for i in part.shard.layers)
        layers = {name for name in part.tensors_read if ".layers." in name}
        assert all(name.startswith(own) for name in layers)
        assert ("model.norm.weight" in part.tensors_read) == part.shard.last
        assert ("model.embed_tokens.weight" in part.tensors_read) == (
            part.shard.first or (tied and part.shard.last)
        )
        assert part.weight_bytes < whole.weight_bytes
        pool = ModelRunner(part, KV_BYTES).pool
        assert len(pool.keys) == max(1, len(part.kv_layers))
        assert pool.num_blocks == ModelRunner(whole, KV_BYTES).pool.num_blocks


@given(
    costs=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    head=st.integers(0, 200),
    count=st.integers(1, 4),
)
def test_the_split_is_the_most_even_one(costs: list[int], head: int, count: int) -> None:
    """Runs are whole, in order and none is empty; no other way has a cheaper most expensive one."""
    if count > len(costs):
        with pytest.raises(ConfigurationError, match="shards"):
            split(costs, head, count)
        return
    runs = split(costs, head, count)
    assert [i for run in runs for i in run] == list(range(len(costs)))
    assert all(runs)
    sums = [sum(costs[i] for i in run) for run in runs]
    sums[-1] += head

    def fits(most: int) -> bool:
        """Whether it can be done at `most`: greedily, each run as long as it may be."""
        at = 0
        for left in range(count - 1, 0, -1):
            cost, start = 0, at
            while at < len(costs) - left and cost + costs[at] <= most:
                cost += costs[at]
                at += 1
            if at == start:
                return False
        return sum(costs[at:]) + head <= most

    assert not fits(max(sums) - 1)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0, 5)])
def test_shards_that_do_not_exist(shard: tuple[int, int], family_dir: FamilyDir) -> None:
    """A place outside the row, or more shards than layers, is a configuration error."""
    with pytest.raises(ConfigurationError, match="shard"):
        load_model(family_dir("llama"), shard=shard)
