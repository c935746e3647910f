"""A list of a prepared folder's files with sizes and hashes: written last, so it means `whole`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from slipstream.core.errors import CheckpointError

NAME = "slipstream-manifest.json"


def sha256(path: Path) -> str:
    """Hex digest of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, source: str) -> None:
    """Lists every file of `folder`; `source` says what it was made from. Flushes to the disk."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != NAME
    }
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({"source": source, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def check(folder: Path, *, hashes: bool) -> None:
    """Compares the folder with its manifest: sizes always, contents if `hashes`.

    Raises:
        CheckpointError: there is no manifest, or a file is missing or another one.
    """
    try:
        files = json.loads((folder / NAME).read_text(encoding="utf-8"))["files"]
        listed = [(folder / name, int(e["size"]), str(e["sha256"])) for name, e in files.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(f"{folder} has no readable manifest") from failure
    for path, size, digest in listed:
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{path} is missing or has another size than the manifest says")
        if hashes and sha256(path) != digest:
            raise CheckpointError(f"{path} has another content than the manifest says")
