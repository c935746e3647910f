"""Small model folders that are whole, to be damaged by tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


def write_model(folder: Path, *, shards: int = 1) -> Path:
    """A whole folder: config, tokenizer, and two tensors in one file or one in each of two."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
    tensors = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.ones(5, dtype=np.float32),
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    placed = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, shard in placed.items():
        save_file({name: tensors[name]}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes a whole model into the folder that it is given."""
    return write_model


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes a whole model into a new folder and returns that."""
    return lambda **options: write_model(tmp_path / "model", **options)
