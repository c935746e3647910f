"""A cache folder in which every entry is whole or absent, whoever builds it and whatever fails."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from slipstream.core.errors import CheckpointError, ConfigurationError, DeadlineExceeded
from slipstream.models import manifest

# Longer than the conversion of any model that a machine can then serve.
LOCK_SECONDS = 3600.0


def build_once(
    entry: Path,
    build: Callable[[Path], None],
    *,
    source: str,
    verify: bool = False,
    lock_seconds: float = LOCK_SECONDS,
) -> Path:
    """Returns `entry`, calling `build(empty folder)` first if it is not there or not whole.

    The folder is built under another name beside `entry`, listed in a manifest and renamed, all
    under a file lock: of several processes one builds and the others wait for it.

    Raises:
        ConfigurationError: the cache cannot be written, or the disk is full.
        DeadlineExceeded: another process held the lock for `lock_seconds`.
    """
    if is_whole(entry, verify=verify):
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{entry}.lock", timeout=lock_seconds):
            # Another process may have built it while this one waited.
            if not is_whole(entry, verify=verify):
                _replace(entry, build, source)
    except Timeout as failure:
        raise DeadlineExceeded(
            f"another process has been preparing {entry.name} for {lock_seconds:.0f} s"
        ) from failure
    except OSError as failure:
        raise unusable(entry.parent, failure) from failure
    return entry


def open_to_all(folder: Path) -> None:
    """Makes the folder and its files readable, as a download would leave them: one user may prepare
    what another one's service reads."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def unusable(folder: Path, failure: OSError) -> ConfigurationError:
    """The error for a cache folder that cannot be written, and what to do about it."""
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full"
    else:
        reason = failure.strerror or str(failure)
    return ConfigurationError(
        f"cannot write to the model cache {folder}: {reason}; "
        "SLIPSTREAM_CACHE can name a folder elsewhere"
    )


def is_whole(entry: Path, *, verify: bool) -> bool:
    """Whether it has a manifest and all that is listed there, at its size; contents if `verify`."""
    if not entry.is_dir():
        return False
    try:
        manifest.check(entry, hashes=verify)
    except CheckpointError:
        return False
    return True


def _replace(entry: Path, build: Callable[[Path], None], source: str) -> None:
    prefix = f"{entry.name}.partial-"
    # Left behind by a process that was killed; the lock says that nobody works on them.
    for left in entry.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=entry.parent))
    try:
        build(temporary)
        manifest.write(temporary, source)
        if entry.exists():
            shutil.rmtree(entry)
        open_to_all(temporary)
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
