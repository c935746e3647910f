from __future__ import annotations

import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from slipstream.core.errors import ConfigurationError, DeadlineExceeded
from slipstream.models import manifest
from slipstream.models.cache import build_once


class Builder:
    """Writes two files, counting how often it was asked to."""

    def __init__(self, pause: float = 0.0) -> None:
        self.calls = 0
        self._pause = pause
        self._lock = threading.Lock()

    def __call__(self, folder: Path) -> None:
        with self._lock:
            self.calls += 1
        (folder / "one").write_text("1")
        time.sleep(self._pause)
        (folder / "two").write_text("22")


def visible(entry: Path) -> list[str]:
    return sorted(p.name for p in entry.parent.iterdir() if not p.name.endswith(".lock"))


def test_built_once_and_listed(tmp_path: Path) -> None:
    """The second call finds the entry, and its manifest lists what was built."""
    build = Builder()
    entry = tmp_path / "cache" / "entry"
    for _ in range(2):
        assert build_once(entry, build, source="s") == entry
    assert build.calls == 1
    manifest.check(entry, hashes=True)
    assert visible(entry) == ["entry"]


def test_two_starts_at_once_build_once(tmp_path: Path) -> None:
    """Of four callers at the same time one builds; all get the whole entry."""
    build = Builder(pause=0.2)
    with ThreadPoolExecutor(4) as pool:
        entries = list(pool.map(lambda _: build_once(tmp_path / "e", build, source="s"), range(4)))
    assert build.calls == 1
    assert {(entry / "two").read_text() for entry in entries} == {"22"}


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ConfigurationError, "disk is full"),
        (OSError(errno.EIO, "Input/output error"), ConfigurationError, "Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (SystemExit(143), SystemExit, "143"),
    ],
)
def test_nothing_half_made_is_left(
    tmp_path: Path, failure: BaseException, expected: type[BaseException], message: str
) -> None:
    """A full disk or an interruption in mid-build leaves no entry; a later call builds it."""
    entry = tmp_path / "entry"

    def build(folder: Path) -> None:
        (folder / "one").write_text("1")
        raise failure

    with pytest.raises(expected, match=message):
        build_once(entry, build, source="s")
    assert visible(entry) == []
    build_once(entry, Builder(), source="s")
    assert visible(entry) == ["entry"]


def test_disk_full_while_the_manifest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest comes last: without it there is no entry."""

    def full(folder: Path, source: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(ConfigurationError, match="disk is full"):
        build_once(tmp_path / "entry", Builder(), source="s")
    assert visible(tmp_path / "entry") == []


def test_left_over_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    """A folder that a killed build left behind does not stay for ever."""
    (tmp_path / "entry.partial-dead").mkdir()
    (tmp_path / "entry.partial-dead" / "one").write_text("1")
    build_once(tmp_path / "entry", Builder(), source="s")
    assert visible(tmp_path / "entry") == ["entry"]


@pytest.mark.parametrize(
    ("damage", "verify", "calls"),
    [
        (lambda entry: (entry / "two").write_text("2"), False, 2),
        (lambda entry: (entry / "two").unlink(), False, 2),
        (lambda entry: (entry / manifest.NAME).write_text("{"), False, 2),
        (lambda entry: (entry / manifest.NAME).write_text('{"files": 3}'), False, 2),
        (lambda entry: (entry / "two").write_text("99"), False, 1),
        (lambda entry: (entry / "two").write_text("99"), True, 2),
        (lambda entry: None, True, 1),
    ],
)
def test_damaged_entry_is_built_again(tmp_path: Path, damage, verify, calls) -> None:
    """Sizes are checked at every use, contents when asked to; what is whole is not rebuilt."""
    build = Builder()
    entry = build_once(tmp_path / "entry", build, source="s")
    damage(entry)
    build_once(entry, build, source="s", verify=verify)
    assert build.calls == calls


def test_waiting_for_another_process_has_a_deadline(tmp_path: Path) -> None:
    """A lock that is never released becomes an error, not a hang."""
    with (
        FileLock(tmp_path / "entry.lock"),
        pytest.raises(DeadlineExceeded, match="entry"),
    ):
        build_once(tmp_path / "entry", Builder(), source="s", lock_seconds=0.1)


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Where the cache folder cannot be made, the error names the setting that moves it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="SLIPSTREAM_CACHE"):
        build_once(tmp_path / "file" / "models" / "entry", Builder(), source="s")
