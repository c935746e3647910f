"""Converted GGUF files in the cache, named by the hash of what they were made from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from slipstream.core.errors import CheckpointError, ConfigurationError
from slipstream.core.extras import require
from slipstream.models.cache import build_once
from slipstream.models.manifest import sha256
from slipstream.models.progress import Progress

# Part of the name of a cache entry: raised when the conversion gives other files than before.
CONVERSION = 1
CONVERT_SECONDS = 3600.0
Convert = Callable[[Path, Path], None]


def entry_of(cache: Path, digest: str) -> Path:
    """Where the conversion of the GGUF file with this sha256 belongs."""
    return cache / "models" / f"gguf-{digest[:32]}-v{CONVERSION}"


def resolve_gguf(
    file: Path, cache: Path, progress: Progress, *, verify: bool, convert: Convert | None = None
) -> Path:
    """The converted folder of a local GGUF file, made on first use.

    Raises:
        CheckpointError: the file cannot be read or converted.
        ConfigurationError: the cache cannot be written.
    """
    convert = run_conversion if convert is None else convert
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
        if magic != b"GGUF":
            raise CheckpointError(f"{file} is not a GGUF file")
        digest = sha256(file)
    except OSError as failure:
        raise CheckpointError(f"cannot read {file}: {failure.strerror}") from failure

    def build(folder: Path) -> None:
        require("engine", "converting a .gguf file")
        with progress.work(f"Converting {file.name}"):
            convert(file, folder)

    return build_once(entry_of(cache, digest), build, source=f"gguf sha256:{digest}", verify=verify)


def run_conversion(file: Path, folder: Path) -> None:
    """Runs the conversion as a process, so that this one needs no torch and gets no larger.

    Raises:
        ConfigurationError: the disk is full.
        CheckpointError: the conversion failed or took more than an hour.
    """
    command = [sys.executable, "-m", "slipstream.models.convert", str(file), str(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, errors = process.communicate(timeout=CONVERT_SECONDS)
        except subprocess.TimeoutExpired as failure:
            process.kill()
            raise CheckpointError(f"the conversion of {file} took too long") from failure
        except BaseException:
            process.kill()
            raise
    if process.returncode == 0:
        return
    last = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    if last.startswith("the disk is full"):
        raise ConfigurationError(f"{last}; SLIPSTREAM_CACHE can name a folder elsewhere")
    raise CheckpointError(f"cannot convert {file}: {last}")
