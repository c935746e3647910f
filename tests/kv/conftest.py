"""One tiny checkpoint, and the engines that hold, pull and draft on its keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.runner import ModelRunner
from tests.kv.rig import PATIENCE_SECONDS
from tests.verifier.rig import write_checkpoint

BLOCKS = 100
MakeRunner = Callable[..., ModelRunner]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small-llama"), context=1024)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, other weights."""
    return write_checkpoint(tmp_path_factory.mktemp("other-llama"), context=1024, seed=2)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Of the module: tests of other folders that come later have the real ones.
@pytest.fixture(scope="module", autouse=True)
def _patience() -> Iterator[None]:
    """Who answers late is not given up: that says how busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_ACQUIRE_SECONDS", "_CHUNK_SECONDS", "_MOST_SECONDS"):
            patch.setattr(f"verifier_service.kv_import.{name}", PATIENCE_SECONDS)
        patch.setattr("verifier_service.drafter_choice._ASK_SECONDS", PATIENCE_SECONDS)
        patch.setattr("slipstream.wire.kv_client._CALL_SECONDS", PATIENCE_SECONDS)
        yield


@pytest.fixture(scope="session")
def make_runner(checkpoint: Path) -> MakeRunner:
    """Runners of that checkpoint; those of one plan, type and size share their weights, and the
    shapes, which take longer to find than most tests."""
    loaded, shapes = {}, {}

    def make(
        plan: LayerPlan | None = None,
        *,
        dtype: str = "auto",
        blocks: int = BLOCKS,
        shard: tuple[int, int] = (0, 1),
    ) -> ModelRunner:
        key = (plan, dtype, shard)
        if key not in loaded:
            loaded[key] = load_model(checkpoint, plan=plan, dtype=dtype, shard=shard)
        # A shard's pool has as many blocks as the whole drafter's would.
        layers = 2 - len(plan.skip_attention if plan else ())
        width = loaded[key].dtype.itemsize
        runner = ModelRunner(loaded[key], kv_bytes=blocks * layers * 512 * width)
        assert runner.pool.num_blocks == blocks
        if dtype == "auto" and blocks == BLOCKS and shard == (0, 1):
            if key not in shapes:
                choose_shapes(runner, "strict")
                shapes[key] = runner.min_rows, runner.query_multiple
            runner.min_rows, runner.query_multiple = shapes[key]
        elif shard[1] > 1:
            whole = make(plan, dtype=dtype, blocks=blocks)
            runner.min_rows, runner.query_multiple = whole.min_rows, whole.query_multiple
        return runner

    return make
