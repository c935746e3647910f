"""A tiny model's runners, shared by the tests of tuning; one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from slipstream.bench.records import Prompt
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.tune.answers import Answer, answer

PROMPTS = [
    Prompt(str(n), "qa", tuple((11 * n + 7 * i) % 380 for i in range(20 + n))) for n in (1, 2)
]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals are not forced to the disk after every line."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def full(tiny_model_dir: Path) -> ModelRunner:
    return ModelRunner(load_model(tiny_model_dir), 1 << 22)


@pytest.fixture(scope="session")
def copy(tiny_model_dir: Path) -> ModelRunner:
    """The same weights in a pool of its own."""
    return ModelRunner(load_model(tiny_model_dir, plan=LayerPlan()), 1 << 22)


@pytest.fixture(scope="session", params=[0.0, 1.0], ids=["greedy", "temperature 1"])
def answers(request: pytest.FixtureRequest, full: ModelRunner) -> list[Answer]:
    return answer(full, PROMPTS, 40, temperature=request.param, seed=3)
