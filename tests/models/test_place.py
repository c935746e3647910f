from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from gateway.tokenizer import Tokenizer
from slipstream.core.errors import CheckpointError, ConfigurationError
from slipstream.models import default, default_tokenizer, manifest, place
from slipstream.models.hub import TOKENIZER_PATTERNS
from slipstream.models.place import place as put
from tests.models.conftest import write_model
from tests.models.hub_double import Hub

SECOND = "model-2.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Holds a model in two shards, and what nobody asks for."""
    folder = write_model(tmp_path / "origin", shards=2)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Hub({**files, "model.bin": b"old", "code.py": b"evil"}) as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        template = double.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield double


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "model"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(hub: Hub) -> set[str]:
    return set(hub.files) - {"model.bin", "code.py"} | {manifest.NAME}


def fetch(hub: Hub, target: Path) -> subprocess.Popen[str]:
    """`slipstream fetch owner/name --to target` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "slipstream.cli", "fetch", "owner/name", "--to", str(target)],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(target.parent.parent / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", ["owner/name", "owner/name@v1"])
def test_hub_model(hub: Hub, target: Path, name: str) -> None:
    """It comes whole and listed, without code; the second time the hub is not even asked."""
    assert put(name, target) == target
    assert names(target) == whole(hub)
    manifest.check(target, hashes=True)
    assert names(target.parent) == {"model"}
    before = hub.requests
    put(name, target, verify=True)
    put(name, target, tokenizer_only=True)
    assert hub.requests == before


def test_tokenizer_first_then_the_model(hub: Hub, target: Path) -> None:
    """A gateway's folder has no weights; the model takes its place where it is asked for."""
    put("owner/name", target, tokenizer_only=True)
    assert names(target) == {"config.json", "tokenizer.json", manifest.NAME}
    put("owner/name", target)
    assert names(target) == whole(hub)
    assert names(target.parent) == {"model"}


def test_content_is_what_the_hub_says_it_is(hub: Hub, target: Path) -> None:
    """A file of the right size and another content is found, and nothing of it is left."""
    hub.claimed[SECOND] = "0" * 64
    with pytest.raises(CheckpointError, match=f"{SECOND} came with another content"):
        put("owner/name", target)
    assert names(target.parent) == set()


def test_not_whole_on_the_hub(hub: Hub, target: Path) -> None:
    """A shard that its repository lacks is told before anybody serves the model."""
    del hub.files[SECOND]
    with pytest.raises(CheckpointError, match=f"lacks the weights file {SECOND}"):
        put("owner/name", target)
    assert names(target.parent) == set()


@pytest.mark.parametrize(
    ("name", "message"),
    [("owner/other", "no model owner/other on the hub"), ("owner/name@v7", "no model|no revision")],
)
def test_what_the_hub_does_not_have(hub: Hub, target: Path, name: str, message: str) -> None:
    """Its answer becomes our error, and there is no folder."""
    with pytest.raises(CheckpointError, match=message):
        put(name, target)
    assert names(target.parent) == set()


def test_no_hub(hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody answers, the error says what could not be had."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match="cannot download owner/name from the hub"):
        put("owner/name", target)


@pytest.mark.slow
def test_three_at_once_download_once(hub: Hub, target: Path) -> None:
    """Of three processes one downloads; all end well, with the folder whole."""
    hub.hold = {SECOND}
    running = [fetch(hub, target) for _ in range(3)]
    until(lambda: hub.served[SECOND] == 1)
    hub.release.set()
    outputs = [process.communicate(timeout=200)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], outputs
    assert set(hub.served.values()) == {1}
    assert names(target) == whole(hub)
    assert names(target.parent) == {"model"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_goes_on_where_one_was_killed(
    hub: Hub, target: Path, number: signal.Signals
) -> None:
    """No lock stays behind, and files that had come are not downloaded again."""
    hub.hold = {SECOND}
    process = fetch(hub, target)
    others = whole(hub) - {SECOND, manifest.NAME}

    def all_but_one() -> bool:
        partial = list(target.parent.glob(".model.partial-*"))
        return bool(partial) and others <= names(partial[0]) and hub.served[SECOND] == 1

    until(all_but_one)
    process.send_signal(number)
    process.wait(60)
    process.stdout.close()
    assert not target.exists()
    hub.release.set()
    put("owner/name", target, stale=0.5)
    assert hub.served == {**dict.fromkeys(others, 1), SECOND: 2}
    assert names(target) == whole(hub)
    assert names(target.parent) == {"model"}


def test_room_is_looked_at_first(hub: Hub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume that is too small is told with both numbers, before a byte is downloaded."""
    monkeypatch.setattr(place.shutil, "disk_usage", lambda _: type("U", (), {"free": 100}))
    with pytest.raises(ConfigurationError, match=r"0\.0 GB free, and hub owner/name@main needs"):
        put("owner/name", target)
    assert not hub.served


def test_folder_is_copied_without_code(tmp_path: Path, target: Path) -> None:
    """A local folder's model files come along, and nothing that would run."""
    source = write_model(tmp_path / "source")
    (source / "modeling.py").write_text("evil")
    put(str(source), target)
    assert names(target) == {"config.json", "tokenizer.json", "model.safetensors", manifest.NAME}
    assert put(str(source), source) == source


def test_an_empty_folder_may_be_there(tmp_path: Path, target: Path) -> None:
    """It becomes the model's."""
    target.mkdir(parents=True)
    put(str(write_model(tmp_path / "source")), target)
    manifest.check(target, hashes=True)


@pytest.mark.parametrize("damage", ["model.safetensors", manifest.NAME])
def test_a_damaged_folder_is_made_anew(tmp_path: Path, target: Path, damage: str) -> None:
    """A file cut short, or a manifest that cannot be read."""
    source = write_model(tmp_path / "source")
    put(str(source), target)
    (target / damage).write_text("{")
    put(str(source), target)
    manifest.check(target, hashes=True)
    assert names(target.parent) == {"model"}


def test_what_is_not_ours_stays(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model, somebody's files, a file and a volume itself are refused with a way out."""
    one, two = write_model(tmp_path / "one"), write_model(tmp_path / "two")
    put(str(one), target)
    with pytest.raises(ConfigurationError, match="holds folder .*one where folder .*two was asked"):
        put(str(two), target)
    with pytest.raises(ConfigurationError, match="did not put there"):
        put(str(one), two)
    with pytest.raises(ConfigurationError, match="is a file; a folder is needed"):
        put(str(one), target / "config.json")
    monkeypatch.setattr(place.os.path, "ismount", lambda _: True)
    with pytest.raises(ConfigurationError, match=f"give a folder in it, as {two / 'model'}"):
        put(str(one), two)
    assert manifest.NAME not in names(two)


def test_a_volume_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the folder and the reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write .*model: (File exists|Not a dir)"):
        put(str(write_model(tmp_path / "source")), tmp_path / "file" / "model")


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_that_stood_still_finds_the_work_done(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Another took its lease and its files: what that one made stays, and is an answer."""
    source = str(write_model(tmp_path / "source"))
    other = place._order(source, False, place.Quiet())

    def overtaken(*_: object) -> place._Order:
        def find() -> place._Found:
            found = other.find()
            if when == "before":
                place._make(other, target, "b" * 32)
                return found

            def write(into: Path) -> None:
                found.write(into)
                aside = into.rename(tmp_path / "aside")
                place._make(other, target, "b" * 32)
                aside.rename(into)

            return replace(found, write=write)

        return replace(other, find=find)

    monkeypatch.setattr(place, "_order", overtaken)
    assert put(source, target) == target
    manifest.check(target, hashes=True)
    assert names(target.parent) == {"model"}


def plain(folder: Path, name: str) -> object:
    """A file's content, without what tells which release of transformers wrote it."""
    content = (folder / name).read_text()
    if not name.endswith(".json"):
        return content
    found = json.loads(content)
    return {key: value for key, value in found.items() if key != "transformers_version"}


def test_default_tokenizer_is_the_models(model_dir: Path, target: Path) -> None:
    """What is shipped is what the conversion gives (`python -m slipstream.models.default_tokenizer`
    makes it), and a gateway can load it."""
    put("default", target, tokenizer_only=True)
    shipped = names(target) - {manifest.NAME}
    assert shipped == names(model_dir) & set(TOKENIZER_PATTERNS)
    for name in shipped:
        assert plain(target, name) == plain(model_dir, name), name
    text = Tokenizer(target).render([{"role": "user", "content": "Hello"}])
    assert "<|im_start|>user\nHello" in text
    assert manifest.origin(target) == (
        f"{default.REQUIREMENT} sha256:{default.GGUF_SHA256}",
        manifest.TOKENIZER,
    )


def test_a_name_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default model can go into a folder `default` beside which the command runs."""
    monkeypatch.chdir(tmp_path)
    put("default", Path("default"), tokenizer_only=True)
    assert manifest.origin(tmp_path / "default")[1] == manifest.TOKENIZER


def test_archive_is_the_same_from_the_same(model_dir: Path, tmp_path: Path) -> None:
    """Packed twice at different times it has the same bytes."""
    packed = []
    for name in ("a", "b"):
        default_tokenizer.pack(model_dir, ["config.json", "chat_template.jinja"], tmp_path / name)
        packed.append((tmp_path / name).read_bytes())
    assert packed[0] == packed[1]
