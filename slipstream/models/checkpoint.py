"""Whether a local folder holds a whole model, without reading its weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from slipstream.core.errors import CheckpointError
from slipstream.core.model_folder import cannot_read

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# The safetensors format allows no longer header; a greater number is not a header.
_MAX_HEADER_BYTES = 100_000_000


def check_folder(folder: Path) -> None:
    """Passes a folder with config, tokenizer and every safetensors shard at its full length.

    Raises:
        CheckpointError: something is missing, cut short or not what its name says.
    """
    check_without_weights(folder)
    for shard, tensors in _shards(folder).items():
        present = _check_shard(folder / shard)
        missing = sorted(tensors - present)
        if missing:
            raise CheckpointError(
                f"{folder / shard} lacks {len(missing)} tensors of the index, first {missing[0]}"
            )


def check_without_weights(folder: Path) -> None:
    """The same, but for the weights: what a gateway needs.

    Raises:
        CheckpointError: config or tokenizer is missing, cut short or not what its name says.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no model folder {folder}")
    config = _json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{folder / 'config.json'} names no model_type")
    _check_tokenizer(folder / "tokenizer.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no model folder: {path.name} is missing") from None
    except OSError as failure:
        raise cannot_read(path, failure) from failure
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(f"{path} is damaged or cut short: {failure}") from failure
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _check_tokenizer(path: Path) -> None:
    """Looks at both ends only: a tokenizer of 30 MB takes half a second to parse."""
    try:
        with path.open("rb") as file:
            first = file.read(64).lstrip()[:1]
            file.seek(max(0, path.stat().st_size - 64))
            last = file.read().rstrip()[-1:]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no tokenizer.json (a fast tokenizer is needed)"
        ) from None
    except OSError as failure:
        raise cannot_read(path, failure) from failure
    if (first, last) != (b"{", b"}"):
        raise CheckpointError(f"{path} is damaged or cut short")


def _shards(folder: Path) -> dict[str, set[str]]:
    """Shard file name -> the tensors that the index places there (none without an index)."""
    if (folder / _INDEX).exists():
        placed = _json(folder / _INDEX).get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise CheckpointError(f"{folder / _INDEX} has no weight_map")
        shards: dict[str, set[str]] = {}
        for tensor, shard in placed.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise CheckpointError(f"{folder / _INDEX} names a shard outside its folder")
            shards.setdefault(shard, set()).add(tensor)
        return shards
    if (folder / _SINGLE).exists():
        return {_SINGLE: set()}
    if any(folder.glob("*.bin")):
        raise CheckpointError(f"{folder} has only .bin weights; safetensors are needed")
    if any(folder.glob("*.gguf")):
        raise CheckpointError(f"{folder} holds a GGUF file: give the path of the file itself")
    raise CheckpointError(f"{folder} has no weights: neither {_SINGLE} nor {_INDEX}")


def _check_shard(path: Path) -> set[str]:
    """Compares the length that the header promises with the file's; returns the tensor names.

    The format (github.com/huggingface/safetensors): 8 bytes little-endian header length, the
    header as JSON with `data_offsets` per tensor, counted from the header's end, then the data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES + 1
            if length > min(size, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{path} is damaged or cut short: it has no whole header")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} lacks the weights file {path.name}") from None
    except OSError as failure:
        raise cannot_read(path, failure) from failure
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(f"{path} is damaged: its header is not readable") from failure
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        whole = 8 + length + ends
    except (AttributeError, LookupError, TypeError) as failure:
        raise CheckpointError(f"{path} is damaged: its header has no offsets") from failure
    if whole != size:
        raise CheckpointError(f"{path} is cut short or damaged: {size} bytes where {whole} belong")
    return set(tensors)
