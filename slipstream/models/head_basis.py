"""The basis of a model's screened head, in the cache of prepared models: made once, then there."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from slipstream.core import stages
from slipstream.core.child_processes import dying_with_us
from slipstream.core.errors import CheckpointError, SlipstreamError
from slipstream.core.settings import cache_folder
from slipstream.models.cache import build_once

log = logging.getLogger(__name__)
# Part of the name of a cache entry: raised when the calibration gives another basis than before.
CALIBRATION = 1
CALIBRATE_SECONDS = 900.0
# The model's folder, and an empty one to write into.
Calibrate = Callable[[Path, Path], None]


def head_basis(
    folder: Path,
    fingerprint: str,
    *,
    cache: Path | None = None,
    calibrate: Calibrate | None = None,
) -> Path | None:
    """The file that the model's screened head is made from; None, and why in the log, where it
    cannot be had.

    Made on first use by a process that holds the whole model, in the cache and not in `folder`; a
    damaged file is made anew. Several processes that need it at once make it once.
    """
    cache = cache_folder() if cache is None else cache
    calibrate = run_calibration if calibrate is None else calibrate

    def build(into: Path) -> None:
        stages.tell(f"calibrating the drafter's head for {folder.name}, once for this model")
        calibrate(folder, into)

    entry = cache / "heads" / f"{fingerprint}-v{CALIBRATION}"
    try:
        build_once(entry, build, source=f"model {fingerprint}", verify=True)
        basis, reason = entry / "basis.safetensors", entry / "reason.txt"
        if basis.is_file():
            return basis
        message = reason.read_text(encoding="utf-8")
    except (SlipstreamError, OSError) as failure:
        message = str(failure)
    log.warning("there is no basis for a screened head: %s", message)
    return None


def run_calibration(folder: Path, into: Path) -> None:
    """Runs the calibration as a process, so that this one never holds the whole model.

    Raises:
        CheckpointError: it failed or took too long.
    """
    command = [sys.executable, "-m", "slipstream.engine.calibrate", str(folder), str(into)]
    try:
        done = subprocess.run(
            # A service that is told to stop while it starts does not wait for anything.
            dying_with_us(command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=CALIBRATE_SECONDS,
        )
    except subprocess.TimeoutExpired as failure:
        raise CheckpointError(
            f"the calibration took more than {CALIBRATE_SECONDS:.0f} s"
        ) from failure
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckpointError(f"the calibration failed: {last}")
