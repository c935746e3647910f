"""Model folders: what is unusable is refused with the reason, and identity follows content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from slipstream.core.errors import CheckpointError, ConfigurationError, ModelMismatch
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.model_folder import fingerprint
from slipstream.engine.automatic_plan import automatic_plan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.model_files import (
    ModelFolder,
    eos_token_ids,
    read_config,
)
from slipstream.engine.runner import ModelRunner
from tests.golden.families import build

WEIGHTS = "model.safetensors"
MIDDLE = "model.layers.2.mlp.gate_proj.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(pristine, tmp_path / "model")


def _edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def _cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def _remove_tensor(folder: Path) -> None:
    _edit_weights(folder, lambda tensors: tensors.pop(MIDDLE))


def _bend_tensor(folder: Path) -> None:
    def bend(tensors: dict[str, torch.Tensor]) -> None:
        tensors[MIDDLE] = tensors[MIDDLE].T.contiguous()

    _edit_weights(folder, bend)


def _put_folder(path: Path) -> None:
    """In its place, as some mounts do where there is nothing: it cannot be read, by anybody."""
    path.unlink()
    path.mkdir()


def _write_header(path: Path, header: object) -> None:
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)


FAULTS = {
    "no such folder": (shutil.rmtree, "no config.json"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config cut": (lambda f: _cut(f / "config.json", 0.5), "config.json"),
    "config of another kind": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "a negative size": (lambda f: _edit_config(f, vocab_size=-1), "config.json describes no model"),
    "no heads": (lambda f: _edit_config(f, num_key_value_heads=0), "config.json describes no"),
    "unknown type": (lambda f: _edit_config(f, model_type="nosuch"), "nosuch"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no .safetensors"),
    "weights cut": (lambda f: _cut(f / WEIGHTS, 0.7), f"weights in .*{WEIGHTS}.*fetch or copy"),
    "header cut": (lambda f: _cut(f / WEIGHTS, 0.001), WEIGHTS),
    "weights empty": (lambda f: _cut(f / WEIGHTS, 0.0), WEIGHTS),
    "a web page": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html>" * 99), WEIGHTS),
    "a pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs"), WEIGHTS),
    "JSON, but no header": (
        lambda f: (f / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b'{"a": 1}'),
        WEIGHTS,
    ),
    "weights in no file": (lambda f: _put_folder(f / WEIGHTS), f"cannot read .*{WEIGHTS}"),
    "a header without end": (
        lambda f: (f / WEIGHTS).write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000),
        WEIGHTS,
    ),
    "a config without end": (
        lambda f: (f / "config.json").write_text("[" * 200_000),
        "config.json",
    ),
    "a header of numbers": (lambda f: _write_header(f / WEIGHTS, [1]), WEIGHTS),
    "a tensor before the data": (
        lambda f: _write_header(f / WEIGHTS, {"a": {"data_offsets": [-(1 << 40), 1]}}),
        f"{WEIGHTS} is truncated or not safetensors; fetch or copy it again",
    ),
    "tensor missing": (_remove_tensor, f"lacks the tensor {MIDDLE}.*fetch or copy"),
    "tensor of another shape": (_bend_tensor, r"\(64, 96\).*\(96, 64\)"),
    "another generation config": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json",
    ),
    "a generation config without end": (
        lambda f: (f / "generation_config.json").write_text("[" * 200_000),
        "generation_config.json",
    ),
    "end tokens by name": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}'),
        "eos_token_id in .*generation_config.json must be a token id or a list of them",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_folders_are_refused(fault: str, folder: Path) -> None:
    """Whatever is missing, cut or wrong is a CheckpointError that names it, never another one."""
    break_it, words = FAULTS[fault]
    break_it(folder)
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.7])
def test_the_automatic_plan_refuses_broken_weights(keep: float, folder: Path) -> None:
    """The drafter looks at the weights first, and tells of truncated ones in the same way."""
    _cut(folder / WEIGHTS, keep)
    with pytest.raises(CheckpointError):
        automatic_plan(ModelFolder(folder))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("BertConfig", {}),
        ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("MambaConfig", {}),
        ("OPTConfig", {}),
        ("FalconConfig", {}),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
        ("GptOssConfig", {"num_local_experts": 2, "head_dim": 16}),
        ("T5Config", {}),
        ("CLIPConfig", {}),
    ],
)
def test_models_of_other_designs_are_refused_at_load(
    kind: str, fields: dict[str, Any], folder: Path
) -> None:
    """A model that paged attention cannot serve is refused by its type, before any weight."""
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, kind)(**(shape if kind != "CLIPConfig" else {}) | fields)
    config.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=config.model_type):
        load_model(folder)


def test_a_plan_for_another_model_is_refused(folder: Path) -> None:
    """A plan's fingerprint and its layers are checked before any weight is read."""
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    with pytest.raises(ModelMismatch):
        load_model(folder, plan=LayerPlan(model_fingerprint="f" * 32))
    with pytest.raises(ConfigurationError, match="do not exist"):
        load_model(folder, plan=LayerPlan(skip_mlp=frozenset({4})))


def test_a_pool_without_room_is_refused(folder: Path) -> None:
    """A KV pool of less than two blocks says how much a block takes."""
    with pytest.raises(ConfigurationError, match="one block of 16 tokens"):
        ModelRunner(load_model(folder), 1000)


def test_fingerprint_follows_content(folder: Path, pristine: Path) -> None:
    """Weights and config that compute change the name; the folder's and versions' names do not."""
    same = fingerprint(pristine)
    _edit_config(folder, transformers_version="0.0.1", _name_or_path="elsewhere")
    assert fingerprint(folder) == same
    _edit_config(folder, rms_norm_eps=1e-3)
    changed = fingerprint(folder)
    assert changed != same

    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[MIDDLE][0, 0] += 1.0

    _edit_weights(folder, nudge)
    assert len({same, changed, fingerprint(folder)}) == 3


def test_shards_are_one_model(folder: Path, pristine: Path) -> None:
    """Weights spread over two files load as from one; with one of the two gone they do not."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    (folder / WEIGHTS).unlink()
    save_file({n: tensors[n] for n in names[::2]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, folder / "model-00002-of-00002.safetensors")
    assert load_model(folder).tensors_read == load_model(pristine).tensors_read == set(names)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the tensor"):
        load_model(folder)


def test_end_tokens_are_those_of_the_generation_config(folder: Path) -> None:
    """The generation config's list wins over the config's number; without either there is none."""
    config = read_config(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert eos_token_ids(folder, config) == {2, 7}
    (folder / "generation_config.json").unlink()
    assert eos_token_ids(folder, config) == {2}
    config.eos_token_id = None
    assert eos_token_ids(folder, config) == frozenset()
