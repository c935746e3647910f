"""What `--model` may be, and the folder that it stands for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from slipstream.core.errors import CheckpointError
from slipstream.core.settings import cache_folder
from slipstream.models import default, manifest
from slipstream.models.checkpoint import check_folder
from slipstream.models.gguf import resolve_gguf
from slipstream.models.hub import resolve_hub
from slipstream.models.progress import Progress, Quiet

Kind = Literal["default", "folder", "gguf", "hub"]
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def resolve(
    model: str,
    *,
    progress: Progress | None = None,
    verify: bool = False,
    cache: Path | None = None,
) -> Path:
    """A local folder with config.json, tokenizer.json and safetensors weights.

    Args:
        model: `default`, a local folder, a .gguf file, or a hub name `owner/name[@revision]`.
        progress: is told of downloads and conversions.
        verify: hash every file that has a manifest, not only compare sizes.
        cache: the folder of prepared models (default: the user's).

    Raises:
        CheckpointError: there is no such model, or it is not whole.
        ConfigurationError: the cache cannot be written or the disk is full.
    """
    progress = Quiet() if progress is None else progress
    cache = cache_folder() if cache is None else cache
    path = Path(model).expanduser().absolute()
    match kind_of(model):
        case "default":
            folder = default.resolve_default(cache, progress, verify=verify)
        case "folder":
            folder = path
            if verify and (folder / manifest.NAME).exists():
                manifest.check(folder, hashes=True)
        case "gguf":
            folder = resolve_gguf(path, cache, progress, verify=verify)
        case "hub":
            folder = resolve_hub(model)
    check_folder(folder)
    return folder


def kind_of(model: str) -> Kind:
    """Which of the things that `--model` may be `model` is.

    Raises:
        CheckpointError: none of them.
    """
    path = Path(model).expanduser()
    if model.lower() in ("default", default.NAME):
        return "default"
    if path.is_dir():
        return "folder"
    if path.suffix.lower() == ".gguf":
        return "gguf"
    if path.is_file():
        raise CheckpointError(f"{path} is a file, but not a .gguf file")
    if _HUB_NAME.fullmatch(model) and not model.startswith("."):
        return "hub"
    raise CheckpointError(
        f"there is no model {model!r}: give `default`, a folder, a .gguf file or owner/name"
    )


def served_name(model: str) -> str:
    """The name under which clients ask for the model that `--model` named."""
    if model.lower() == "default":
        return default.NAME
    path = Path(model).expanduser()
    if path.exists():
        return path.absolute().stem if path.is_file() else path.absolute().name
    return model
