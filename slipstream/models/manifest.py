"""A list of a prepared folder's files with sizes and hashes: written last, so it means `whole`."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from slipstream.core.errors import CheckpointError

NAME = "slipstream-manifest.json"
# All that serving needs, or what a gateway reads.
MODEL, TOKENIZER = "model", "tokenizer"


def sha256(path: Path) -> str:
    """Hex digest of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path, source: str, part: str = MODEL) -> dict[str, str]:
    """Lists every file of `folder`, flushes the list to the disk, and returns the hash of each.

    Args:
        source: what the folder was made from.
        part: how much of the model is in it, MODEL or TOKENIZER.
    """
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != NAME
    }
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({"source": source, "part": part, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return {name: str(entry["sha256"]) for name, entry in files.items()}


def origin(folder: Path) -> tuple[str, str]:
    """Source and part, as they were written.

    Raises:
        CheckpointError: there is no manifest, or it is not readable.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        # Folders of earlier releases hold all of their model.
        return str(content["source"]), str(content.get("part", MODEL))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise CheckpointError(f"{folder} has no readable manifest") from failure


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
