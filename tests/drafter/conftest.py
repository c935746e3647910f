"""One tiny engine for all tests of the drafter, and one of a verifier with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.runner import ModelRunner
from slipstream.engine.screened_head import HeadBasis, ScreenedHead
from tests.verifier.rig import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small-llama"))


def _strict(checkpoint: Path, plan: LayerPlan | None = None) -> ModelRunner:
    runner = ModelRunner(load_model(checkpoint, plan=plan), kv_bytes=40 * 4096)
    choose_shapes(runner, "strict")
    return runner


@pytest.fixture(scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drafter_runner(checkpoint: Path, _one_thread: None) -> ModelRunner:
    """All layers as they are, exact whatever the batch."""
    return _strict(checkpoint)


@pytest.fixture(scope="session")
def skipping_runner(checkpoint: Path, _one_thread: None) -> ModelRunner:
    """A drafter that is often wrong: it has only one of the two MLPs."""
    return _strict(checkpoint, LayerPlan(skip_mlp=frozenset({1})))


@pytest.fixture(scope="session")
def screened_runner(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, _one_thread: None
) -> ModelRunner:
    """A drafter whose head is exact for one token, or few, and rough for the others."""
    basis = tmp_path_factory.mktemp("basis") / "basis.safetensors"
    HeadBasis(torch.eye(32), torch.eye(32), 1.0).save(basis)
    plan = LayerPlan(head_precision="screened")
    runner = ModelRunner(load_model(checkpoint, plan=plan, head_basis=basis), kv_bytes=40 * 4096)
    assert isinstance(runner.loaded.model.get_output_embeddings(), ScreenedHead)
    choose_shapes(runner, "strict")
    return runner


@pytest.fixture(scope="session")
def verifier_runner(checkpoint: Path, _one_thread: None) -> ModelRunner:
    return _strict(checkpoint)


@pytest.fixture
def runner(drafter_runner: ModelRunner) -> Iterator[ModelRunner]:
    """The same as `drafter_runner`, given back empty by every test."""
    yield drafter_runner
    assert drafter_runner.pool.num_used == 0
