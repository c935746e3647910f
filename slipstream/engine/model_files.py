"""What is in a model folder: config, identity, and tensors, each read when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from slipstream.core.errors import CheckpointError
from slipstream.core.model_folder import (
    cannot_read,
    config_file,
    fingerprint,
    is_file,
    weight_files,
)
from slipstream.engine.modeling import AutoConfig

# Rotary embeddings of these kinds depend on the longest sequence in the batch once it passes the
# original window, so a token would depend on its neighbours. The window ends there.
_BATCH_DEPENDENT_ROPE = {"longrope", "dynamic"}


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder; what is read of it is read once.

    Raises:
        CheckpointError: from any attribute: what it needs is missing or broken.
    """

    path: Path

    @cached_property
    def config(self) -> Any:
        return read_config(self.path)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.path)


class WeightFiles:
    """The tensors of a model folder, while they are open.

    Raises:
        CheckpointError: there are none, or they are broken; from `read`, too.
    """

    def __init__(self, folder: Path) -> None:
        self._place: dict[str, tuple[Path, Any]] = {}
        with ExitStack() as stack:
            for path in weight_files(folder):
                with _broken_told(path):
                    file = stack.enter_context(safe_open(path, "pt"))
                    self._place |= dict.fromkeys(file.keys(), (path, file))
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Of the tensors with `part` in their name."""
        found: dict[str, tuple[int, ...]] = {}
        for name, (path, file) in self._place.items():
            if part in name:
                with _broken_told(path):
                    found[name] = tuple(file.get_slice(name).get_shape())
        return found

    def read(self, name: str) -> torch.Tensor:
        """A view of the file: as long as it lives, all of the file stays mapped."""
        path, file = self._place[name]
        with _broken_told(path):
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


@contextmanager
def _broken_told(path: Path) -> Iterator[None]:
    """Raises CheckpointError where the block cannot read the weights in that file."""
    try:
        yield
    except (SafetensorError, OSError) as failure:
        raise CheckpointError(
            f"cannot read the weights in {path}: {failure}; fetch or copy the file again"
        ) from failure


def read_config(folder: Path) -> Any:
    """The text model's config. Raises CheckpointError."""
    path = config_file(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except OSError as failure:
        # The library makes one of what is no JSON, too, and has no `strerror` for it.
        if failure.strerror:
            raise cannot_read(path, failure) from failure
        raise CheckpointError(f"cannot read {path}: {failure}") from failure
    except Exception as failure:
        raise CheckpointError(f"cannot read {path}: {failure}") from failure
    if not all(hasattr(config, name) for name in ("num_hidden_layers", "num_attention_heads")):
        raise CheckpointError(
            f"models of type {config.model_type!r} are not supported: it is no text decoder"
        )
    return config


def context_length(config: Any) -> int:
    """Positions up to which a token does not depend on its neighbours in the batch."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    if kind in _BATCH_DEPENDENT_ROPE and original:
        return int(original)
    return int(config.max_position_embeddings)


def eos_token_ids(folder: Path, config: Any) -> frozenset[int]:
    """End-of-sequence tokens, of the generation config where there is one.

    Raises:
        CheckpointError: it cannot be read, or they are no token ids.
    """
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_text()).get("eos_token_id") if is_file(path) else None
    except OSError as failure:
        raise cannot_read(path, failure) from failure
    except (ValueError, AttributeError, RecursionError) as failure:
        raise CheckpointError(f"cannot read {path}: {failure}") from failure
    if found is None:
        found = config.eos_token_id
    if found is None:
        return frozenset()
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(each, int) for each in ids):
        raise CheckpointError(
            f"eos_token_id in {path} must be a token id or a list of them, got {found!r}"
        )
    return frozenset(ids)
