"""One tiny engine for all tests of the verifier, exact whatever the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes
from slipstream.engine.runner import ModelRunner
from tests.verifier.rig import Outcome, plain, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small-llama"))


@pytest.fixture(scope="session")
def strict_runner(checkpoint: Path) -> Iterator[ModelRunner]:
    """With padding under which equality is bitwise, so that no test hangs on a near-tie."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    runner = ModelRunner(load_model(checkpoint), kv_bytes=40 * 4096)
    choose_shapes(runner, "strict")
    yield runner
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exact(strict_runner: ModelRunner) -> tuple[ModelRunner, int]:
    """The strict runner, and the most rows that agree on it."""
    _, shapes = choose_shapes(strict_runner, "strict")
    return strict_runner, shapes.max_rows


@pytest.fixture(scope="session")
def answers_alone(
    exact: tuple[ModelRunner, int],
) -> Callable[[str], list[Outcome]]:
    """By the kind of `limits_of`, what each of `prompts` is answered alone and with nothing cached:
    up to 90 tokens, with log probabilities. Each kind is computed once."""
    from tests.verifier.test_preemption import HOW, limits_of, prompts

    runner, rows = exact

    @functools.cache
    def answers(kind: str) -> list[Outcome]:
        limits, found = limits_of(kind, rows), []
        for prompt, params in prompts():
            runner.pool.forget()
            found.append(plain(runner, prompt, params, limits=limits, **HOW))
        runner.pool.forget()
        return found

    return answers


@pytest.fixture
def runner(strict_runner: ModelRunner) -> Iterator[ModelRunner]:
    """The same, given back empty by every test."""
    yield strict_runner
    assert strict_runner.pool.num_used == 0


@pytest.fixture
def int8_runner(checkpoint: Path, strict_runner: ModelRunner) -> Iterator[ModelRunner]:
    """The same model served at 8 bits, in bfloat16, on the one thread of `strict_runner`."""
    plan = LayerPlan(precision="w8a8", head_precision="w8a8")
    runner = ModelRunner(load_model(checkpoint, dtype="bfloat16", plan=plan), kv_bytes=40 * 2048)
    choose_shapes(runner, "strict")
    yield runner
    assert runner.pool.num_used == 0
