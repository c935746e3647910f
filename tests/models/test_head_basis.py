"""The cache of screened heads' bases: made once, whole or absent, never in the model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.core.errors import CheckpointError
from slipstream.models.head_basis import head_basis, run_calibration


class Calibration:
    """Writes a file, or a reason, or fails; counts its calls."""

    def __init__(self, name: str = "basis.safetensors", *, fails: bool = False) -> None:
        self.name, self.fails, self.calls = name, fails, 0

    def __call__(self, folder: Path, into: Path) -> None:
        self.calls += 1
        if self.fails:
            raise CheckpointError("no memory for it")
        (into / self.name).write_text(f"made of {folder.name}")


def test_it_is_made_once(tmp_path: Path) -> None:
    """The second time it is there; another model has its own; the model's folder stays as it is."""
    model, calibration = tmp_path / "model", Calibration()
    model.mkdir()
    first = head_basis(model, "a" * 32, cache=tmp_path / "cache", calibrate=calibration)
    again = head_basis(model, "a" * 32, cache=tmp_path / "cache", calibrate=calibration)
    other = head_basis(model, "b" * 32, cache=tmp_path / "cache", calibrate=calibration)
    assert first is not None
    assert first == again != other
    assert first.read_text() == "made of model"
    assert calibration.calls == 2
    assert not list(model.iterdir())


@pytest.mark.parametrize("damage", [b"", b"made of mOdel"], ids=["cut", "changed"])
def test_a_damaged_file_is_made_anew(damage: bytes, tmp_path: Path) -> None:
    """One that is shorter, or of the same length with another content, is not used."""
    calibration = Calibration()
    path = head_basis(tmp_path / "model", "a" * 32, cache=tmp_path, calibrate=calibration)
    assert path is not None
    path.write_bytes(damage)
    again = head_basis(tmp_path / "model", "a" * 32, cache=tmp_path, calibrate=calibration)
    assert again == path
    assert path.read_text() == "made of model"
    assert calibration.calls == 2


def test_a_reason_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where screening does not pay there is no basis; that is found out once, and said."""
    calibration = Calibration("reason.txt")
    for _ in range(2):
        assert head_basis(tmp_path / "m", "a" * 32, cache=tmp_path, calibrate=calibration) is None
    assert calibration.calls == 1
    assert "made of m" in caplog.text


def test_a_failure_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A calibration that fails, and a cache that cannot be written, give none and say why; the
    next start tries again."""
    calibration = Calibration(fails=True)
    for _ in range(2):
        assert head_basis(tmp_path / "m", "a" * 32, cache=tmp_path, calibrate=calibration) is None
    assert calibration.calls == 2
    assert "no memory for it" in caplog.text
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "cache"
    assert head_basis(tmp_path / "m", "a" * 32, cache=blocked, calibrate=calibration) is None
    assert "cannot write" in caplog.text


def test_the_process_says_why_it_failed(tmp_path: Path) -> None:
    """What the calibrating process wrote last is in the error."""
    with pytest.raises(CheckpointError, match=r"config\.json"):
        run_calibration(tmp_path, tmp_path)
