from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slipstream.core.errors import CheckpointError
from slipstream.models.checkpoint import check_folder

Make = Callable[..., Path]


@pytest.mark.parametrize("shards", [1, 2])
def test_whole_folder_passes(make_model: Make, shards: int) -> None:
    """A folder with everything in place is accepted, in one file and in shards."""
    check_folder(make_model(shards=shards))


def test_missing_folder(tmp_path: Path) -> None:
    """A folder that is not there is named in the error."""
    with pytest.raises(CheckpointError, match="no model folder .*nowhere"):
        check_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-2.safetensors"])
def test_missing_file_is_named(make_model: Make, name: str) -> None:
    """Each needed file that is missing is refused by name."""
    folder = make_model(shards=2)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        check_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-1.safetensors"])
def test_every_truncation_is_found(make_model: Make, name: str) -> None:
    """Whatever the length at which a file was cut, the folder is refused with its name."""
    path = make_model(shards=2) / name
    whole = path.read_bytes()
    # A final newline is no part of the JSON.
    for length in range(len(whole.rstrip()) if name.endswith(".json") else len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=name):
            check_folder(path.parent)


def test_appended_bytes_are_found(make_model: Make) -> None:
    """A weights file longer than its header says is not the file that was written."""
    path = make_model() / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is cut short or damaged"):
        check_folder(path.parent)


@pytest.mark.parametrize(
    "start",
    [
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2) + b"{[",
        struct.pack("<Q", 7) + b'{"a":1}',
        struct.pack("<Q", 3) + b"[1]",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 30) + b'{"a":{"data_offsets":[0,"9"]}}',
        struct.pack("<Q", 24) + b'{"a":{"data_offsets":1}}',
    ],
)
def test_damaged_header(make_model: Make, start: bytes) -> None:
    """A header that is too long, no JSON or has no offsets is an error, not a crash."""
    path = make_model() / "model.safetensors"
    path.write_bytes(start)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        check_folder(path.parent)


def test_tensor_of_the_index_that_is_in_no_shard(make_model: Make) -> None:
    """The index is compared with what the shards really hold."""
    folder = make_model(shards=2)
    save_file({"other": np.ones(5, dtype=np.float32)}, folder / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="lacks 1 tensors of the index, first b"):
        check_folder(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_unusable_index(make_model: Make, index: str) -> None:
    """An index of another shape is refused."""
    folder = make_model()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        check_folder(folder)


def test_shard_outside_the_folder(make_model: Make) -> None:
    """An index cannot make us read a file elsewhere."""
    folder = make_model()
    index = json.dumps({"weight_map": {"a": "../other.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="outside its folder"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("left", "message"),
    [("pytorch_model.bin", "only .bin"), ("m.gguf", "path of the file"), ("x", "no weights")],
)
def test_other_weights_are_told_apart(make_model: Make, left: str, message: str) -> None:
    """The error says what to do about the weights that are there instead."""
    folder = make_model()
    (folder / "model.safetensors").rename(folder / left)
    with pytest.raises(CheckpointError, match=message):
        check_folder(folder)


def test_config_without_model_type(make_model: Make) -> None:
    """A config that does not say which architecture it is for is refused."""
    folder = make_model()
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model_type"):
        check_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read everything")
def test_unreadable_file(make_model: Make) -> None:
    """A file without read permission is a clear error."""
    folder = make_model()
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match="cannot read"):
        check_folder(folder)
