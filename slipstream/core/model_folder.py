"""What a model's folder says before anything is loaded: which model it is, how many layers."""

from __future__ import annotations

import json
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Any

from slipstream.core.errors import CheckpointError, ConfigurationError

_SAMPLED_BYTES = 1 << 16
# What a config says of a file's history rather than of the model.
_VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


def cannot_read(path: Path, failure: OSError) -> CheckpointError:
    """The error where the system does not let us have a file of a model."""
    return CheckpointError(
        f"cannot read {path}: {failure.strerror}; "
        f"it must be a file that user {os.geteuid()} may read"
    )


def is_file(path: Path) -> bool:
    """Raises CheckpointError where the system does not tell."""
    try:
        return path.is_file()
    except OSError as failure:
        raise cannot_read(path, failure) from failure


def config_file(folder: Path) -> Path:
    """Raises CheckpointError where there is none."""
    path = folder / "config.json"
    if not is_file(path):
        raise CheckpointError(f"{folder} has no config.json; it is not a model folder")
    return path


def weight_files(folder: Path) -> list[Path]:
    """At least one, sorted by name. Raises CheckpointError."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors files")
    return files


def num_layers(folder: Path) -> int:
    """Decoder layers, by the config alone. Raises CheckpointError."""
    config = _config(folder)
    text = config.get("text_config")
    found = (text if isinstance(text, dict) else config).get("num_hidden_layers")
    if not isinstance(found, int):
        raise CheckpointError(f"{folder}: config.json names no number of layers")
    return found


def check_split(folder: Path, count: int) -> None:
    """Raises ConfigurationError where a drafter has no layers for so many shards."""
    if count > 1 and count > (layers := num_layers(folder)):
        raise ConfigurationError(
            f"a model of {layers} layers cannot be split into {count} shards: each has one or more"
        )


def fingerprint(folder: Path) -> str:
    """Names the model in `folder` by content: 32 hex digits.

    Covers the config, the name, type and place of every tensor, and the first 64 KiB of each
    tensor's data; a full hash of a large model would cost minutes at every start.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    digest = blake2b(digest_size=16)
    config = _config(folder)
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for path in weight_files(folder):
        try:
            _digest_tensors(path, digest)
        # A header of other bytes may say anything, such as a length beyond all memory.
        except (
            struct.error,
            ValueError,
            TypeError,
            LookupError,
            OverflowError,
            MemoryError,
            RecursionError,
        ) as failure:
            raise CheckpointError(
                f"{path} is truncated or not safetensors; fetch or copy it again"
            ) from failure
        except OSError as failure:
            raise cannot_read(path, failure) from failure
    return digest.hexdigest()


def _config(folder: Path) -> dict[str, Any]:
    path = config_file(folder)
    try:
        return dict(json.loads(path.read_text()))
    except OSError as failure:
        raise cannot_read(path, failure) from failure
    except (ValueError, TypeError, RecursionError) as failure:
        raise CheckpointError(f"{path} is damaged or cut short: {failure}") from failure


def _digest_tensors(path: Path, digest: blake2b) -> None:
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        raw = file.read(size)
        header = json.loads(raw)
        digest.update(raw)
        for name in sorted(header):
            if name != "__metadata__":
                start, end = header[name]["data_offsets"]
                if start < 0:
                    raise ValueError("a tensor before the data")
                file.seek(8 + size + start)
                digest.update(file.read(min(end - start, _SAMPLED_BYTES)))
