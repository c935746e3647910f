"""A tiny drafter in one piece and in two, three and four, with equal shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.runner import ModelRunner
from tests.golden.families import build_config

KV_BYTES = 1 << 21
LAYERS = 4
PLAN = LayerPlan(skip_mlp=frozenset({1}), skip_attention=frozenset({2}))
Parts = Callable[[int], list[ModelRunner]]


@pytest.fixture(scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_config("LlamaConfig", {}, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def whole(checkpoint: Path, _one_thread: None) -> ModelRunner:
    """The drafter in one piece, exact whatever the batch."""
    runner = ModelRunner(load_model(checkpoint, plan=PLAN), KV_BYTES)
    choose_shapes(runner, "strict")
    return runner


@pytest.fixture(scope="session")
def parts(checkpoint: Path, whole: ModelRunner) -> Parts:
    """Its shards, by how many there are."""
    made: dict[int, list[ModelRunner]] = {}

    def of(count: int) -> list[ModelRunner]:
        if count not in made:
            made[count] = [
                ModelRunner(load_model(checkpoint, plan=PLAN, shard=(i, count)), KV_BYTES)
                for i in range(count)
            ]
            for runner in made[count]:
                runner.min_rows = whole.min_rows
                runner.query_multiple = whole.query_multiple
        return made[count]

    return of
