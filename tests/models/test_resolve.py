from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from slipstream.core.errors import CheckpointError, ConfigurationError
from slipstream.core.settings import cache_folder
from slipstream.models import default, gguf, manifest, resolve, served_name
from slipstream.models.progress import Bar, Lines, progress_on

Make = Callable[..., Path]


def test_local_folder_is_used_where_it_is(make_model: Make, tmp_path: Path) -> None:
    """A folder is checked and returned, and nothing is written to the cache."""
    folder = make_model()
    assert resolve(str(folder), cache=tmp_path / "cache") == folder
    assert not (tmp_path / "cache").exists()


def test_verify_compares_a_folder_with_its_manifest(make_model: Make) -> None:
    """A changed byte that keeps the size is found by verify alone."""
    folder = make_model()
    manifest.write(folder, "test")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    resolve(str(folder))
    with pytest.raises(CheckpointError, match="another content"):
        resolve(str(folder), verify=True)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "", "a b", "word"])
def test_names_that_are_nothing(name: str, tmp_path: Path) -> None:
    """What is neither file, folder nor hub name is refused at once with what may be given."""
    with pytest.raises(CheckpointError, match="there is no model"):
        resolve(name or "?", cache=tmp_path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    """A file that is not GGUF is refused, by its name or by its first bytes."""
    (tmp_path / "weights.bin").write_text("x")
    (tmp_path / "fake.gguf").write_text("not it")
    with pytest.raises(CheckpointError, match="not a .gguf file"):
        resolve(str(tmp_path / "weights.bin"))
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        resolve(str(tmp_path / "fake.gguf"), cache=tmp_path / "cache")
    with pytest.raises(CheckpointError, match="No such file"):
        resolve(str(tmp_path / "missing.gguf"), cache=tmp_path / "cache")


def test_gguf_is_converted_once_for_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Make
) -> None:
    """The same content under another name is not converted again; another content is."""
    converted = []

    def convert(source: Path, folder: Path) -> None:
        converted.append(source.name)
        write(folder)

    monkeypatch.setattr(gguf, "run_conversion", convert)
    for name, content in [("a.gguf", b"GGUF1"), ("b.gguf", b"GGUF1"), ("c.gguf", b"GGUF2")]:
        (tmp_path / name).write_bytes(content)
        resolve(str(tmp_path / name), cache=tmp_path / "cache")
    assert converted == ["a.gguf", "c.gguf"]


@pytest.mark.slow
def test_broken_gguf_is_a_clear_error(tmp_path: Path) -> None:
    """The real conversion process says in one line why it cannot read a file; nothing is left."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\7" * 100)
    with pytest.raises(CheckpointError, match=r"cannot read broken\.gguf as a GGUF model"):
        resolve(str(tmp_path / "broken.gguf"), cache=tmp_path / "cache")
    assert [p for p in (tmp_path / "cache" / "models").iterdir() if p.suffix != ".lock"] == []


def test_disk_full_in_the_conversion_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion process's word about a full disk arrives as a configuration error."""
    script = (
        "import sys; sys.stderr.write('noise\\nthe disk is full: cannot write x\\n'); sys.exit(2)"
    )
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{script}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ConfigurationError, match="the disk is full.*SLIPSTREAM_CACHE"):
        gguf.run_conversion(tmp_path / "m.gguf", tmp_path)


def test_hub_name_asks_for_weights_only(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and revision reach the hub's client, with patterns that leave code and .bin out."""
    folder = make_model()
    asked: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name@v1.0") == folder
    assert (asked["repository"], asked["revision"]) == ("owner/name", "v1.0")
    kept = huggingface_hub.utils.filter_repo_objects(
        ["config.json", "model.safetensors", "x.bin", "code.py", "original/model.safetensors"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(kept) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (errors.LocalEntryNotFoundError("x"), "hub cannot be reached"),
        (ConnectionError("connection refused"), "connection refused"),
        (errors.HFValidationError("x"), "neither a file, a folder nor a hub name"),
    ],
)
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str) -> None:
    """Each way in which the hub says no has its own words."""

    def download(*_: Any, **__: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=message):
        resolve("owner/name")


def test_hub_offline_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client in offline mode, with an empty cache, ends in our error."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="owner/name"):
        resolve("owner/name")


def test_served_names(tmp_path: Path) -> None:
    """Clients ask for a model by its folder's or file's name, or by its hub name."""
    (tmp_path / "my-model").mkdir()
    (tmp_path / "other.Q4.gguf").touch()
    assert served_name("default") == default.NAME
    assert served_name(str(tmp_path / "my-model")) == "my-model"
    assert served_name(str(tmp_path / "other.Q4.gguf")) == "other.Q4"
    assert served_name("owner/name") == "owner/name"


def test_cache_folder_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SLIPSTREAM_CACHE moves the cache; empty counts as not set."""
    monkeypatch.setenv("SLIPSTREAM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("SLIPSTREAM_CACHE", "")
    assert cache_folder().name == "slipstream"


def test_progress_fits_the_stream() -> None:
    """Without a terminal each piece of work is one line; on one it is a bar that ends full."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    plain, terminal = io.StringIO(), Terminal()
    for stream, kind in [(plain, Lines), (terminal, Bar)]:
        shown = progress_on(stream)
        assert isinstance(shown, kind)
        with shown.work("Downloading x", 2_000_000) as report:
            report(500_000)
        with shown.work("Converting x"):
            pass
    assert plain.getvalue() == "Downloading x (2 MB)\nConverting x\n"
    assert "2.0/2.0 MB" in terminal.getvalue()


def test_no_torch_is_imported() -> None:
    """The gateway may import this package: it brings neither torch nor transformers."""
    script = (
        "import sys, slipstream.models; "
        "sys.exit(bool({'torch', 'transformers', 'gguf'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, timeout=200)
    assert ended.returncode == 0
