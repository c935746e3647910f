"""Loads a model folder: config, identity, and just those weights that a layer plan keeps."""

from __future__ import annotations

import json
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from slipstream.core.errors import CheckpointError
from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.engine.attention import IMPLEMENTATION
from slipstream.engine.integer_kernel import GROUP
from slipstream.engine.linear import int4_error, weight_bytes
from slipstream.engine.memory import give_back, use_huge_pages
from slipstream.engine.shards import Shard, cut, make_shard
from slipstream.engine.skips import SkipSet
from slipstream.engine.transforms import (
    decoder_layers,
    optimize,
    skip_sublayers,
    skippable,
)

# Rotary embeddings of these kinds depend on the longest sequence in the batch once it passes the
# original window, so a token would depend on its neighbours. The window ends there.
_BATCH_DEPENDENT_ROPE = {"longrope", "dynamic"}
_SAMPLED_BYTES = 1 << 16
# Weights of fewer bytes stay in the caches, where small pages cost little.
_HUGE_PAGE_BYTES = 16 << 20
# What a config says of a file's history rather than of the model.
_VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
# int4 that hurts the weights less than their own bfloat16 rounding several times over: the
# checkpoint was 4-bit already.
_FREE_INT4_ERROR = 0.01
# Bytes that are no header may say anything, such as a length beyond all memory.


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        model: `transformers` causal LM, transformed; call it through ModelRunner.
        kv_layers: decoder layers that have keys and values here, in order.
        num_kv_layers: how many have them in all parts of the model together.
        shard: which part of the model this is; a model in one piece is the only one.
        weight_bytes: of all weights held.
        tensors_read: names of the tensors that were read from disk.
        skips: leaves out further sublayers, from one pass to the next.
    """

    model: nn.Module
    config: Any
    fingerprint: str
    plan: LayerPlan
    dtype: torch.dtype
    device: torch.device
    kv_layers: tuple[int, ...]
    num_kv_layers: int
    shard: Shard
    context_length: int
    eos_token_ids: frozenset[int]
    weight_bytes: int
    tensors_read: frozenset[str]
    skips: SkipSet

    @property
    def running_plan(self) -> LayerPlan:
        """The plan that passes follow now: what was never loaded and what is left out."""
        plan, now = self.plan, self.skips.current
        return plan.with_skips(Skips(plan.skip_attention | now.attention, plan.skip_mlp | now.mlp))


def read_config(folder: Path) -> Any:
    """The text model's config. Raises CheckpointError."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; it is not a model folder")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as failure:
        raise CheckpointError(f"cannot read {folder / 'config.json'}: {failure}") from failure
    if not all(hasattr(config, name) for name in ("num_hidden_layers", "num_attention_heads")):
        raise CheckpointError(
            f"models of type {config.model_type!r} are not supported: it is no text decoder"
        )
    return config


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no .safetensors files")
    return files


def _digest_tensors(path: Path, digest: blake2b) -> None:
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        raw = file.read(size)
        header = json.loads(raw)
        digest.update(raw)
        for name in sorted(header):
            if name != "__metadata__":
                start, end = header[name]["data_offsets"]
                file.seek(8 + size + start)
                digest.update(file.read(min(end - start, _SAMPLED_BYTES)))


def fingerprint(folder: Path) -> str:
    """Names the model in `folder` by content: 32 hex digits.

    Covers the config, the name, type and place of every tensor, and the first 64 KiB of each
    tensor's data; a full hash of a large model would cost minutes at every start.
    """
    digest = blake2b(digest_size=16)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for path in _weight_files(folder):
        try:
            _digest_tensors(path, digest)
        # A header of other bytes may say anything, such as a length beyond all memory.
        except (
            struct.error,
            ValueError,
            TypeError,
            KeyError,
            OverflowError,
            MemoryError,
        ) as failure:
            raise CheckpointError(f"{path} is truncated or not safetensors") from failure
    return digest.hexdigest()


def _dtype(requested: str, config: Any) -> torch.dtype:
    if requested == "auto":
        saved = getattr(config, "dtype", None)
        return torch.float32 if saved == torch.float32 else torch.bfloat16
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[requested]


def _context_length(config: Any) -> int:
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    if kind in _BATCH_DEPENDENT_ROPE and original:
        return int(original)
    return int(config.max_position_embeddings)


def eos_token_ids(folder: Path, config: Any) -> frozenset[int]:
    """End-of-sequence tokens, of the generation config where there is one."""
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    except (ValueError, AttributeError) as failure:
        raise CheckpointError(f"cannot read {path}: {failure}") from failure
    if found is None:
        found = config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)


def _check_supported(model: nn.Module, plan: LayerPlan) -> None:
    """Refuses what would load and then fail, or run and be wrong.

    Raises:
        AttributeError, ValueError: with what the model has that is not.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError("its attention cannot be replaced")
    for layer in decoder_layers(model):
        if not hasattr(layer, "mlp"):
            raise ValueError("its layers are not an attention and an MLP")
        if hasattr(layer.self_attn, "sinks"):
            raise ValueError("attention sinks are not implemented")
        if plan.skips and not skippable(layer):
            raise ValueError("its sublayers cannot be skipped")


def _empty_model(config: Any, dtype: torch.dtype, plan: LayerPlan) -> nn.Module:
    try:
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=IMPLEMENTATION
            )
        _check_supported(model, plan)
    except (ValueError, AttributeError, KeyError) as failure:
        raise CheckpointError(
            f"models of type {config.model_type!r} are not supported: {failure}"
        ) from failure
    result: nn.Module = model.eval()
    return result


def _read_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device
) -> frozenset[str]:
    """Gives every parameter of `model` its tensor; reads nothing else."""
    read: set[str] = set()
    tied = dict(getattr(model, "_tied_weights_keys", None) or {})
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(p, "pt")) for p in _weight_files(folder)]
            place = {name: file for file in files for name in file.keys()}
            wanted = [name for name, _ in model.named_parameters()]
            for name in wanted:
                source = name if name in place else tied.get(name, name)
                # What is tied to a parameter of this model becomes the same one below.
                if source != name and source in wanted:
                    continue
                if source not in place:
                    raise CheckpointError(f"{folder} lacks the tensor {name}")
                # A copy: one tensor that still was a view of the file would keep all of it mapped.
                tensor = place[source].get_tensor(source).to(device, dtype, copy=True)
                owner, _, leaf = name.rpartition(".")
                module = model.get_submodule(owner)
                expected = getattr(module, leaf).shape
                if tensor.shape != expected:
                    raise CheckpointError(
                        f"{name} has shape {tuple(tensor.shape)}, the config says {tuple(expected)}"
                    )
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
                read.add(source)
        except (SafetensorError, OSError) as failure:
            raise CheckpointError(f"cannot read the weights in {folder}: {failure}") from failure
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    if isinstance(head, nn.Linear) and head.weight.is_meta:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        head.weight = embedding.weight
    return frozenset(read)


def _largest_matrix(folder: Path, part: str) -> torch.Tensor | None:
    """The largest matrix with `part` in its name."""
    largest: torch.Tensor | None = None
    for path in _weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if part in name and name.endswith("weight"):
                    tensor = file.get_tensor(name)
                    if tensor.ndim == 2 and (largest is None or tensor.numel() > largest.numel()):
                        largest = tensor
    return largest


def automatic_plan(folder: Path, config: Any) -> LayerPlan:
    """The drafter's plan where none is given: all layers, int4 where that is free, else int8.

    A checkpoint that comes from 4-bit files loses nothing when stored in 4 bits again; measured
    on the largest matrix of the middle layer.
    """
    try:
        largest = _largest_matrix(folder, f".layers.{config.num_hidden_layers // 2}.")
    except (SafetensorError, OSError) as failure:
        raise CheckpointError(f"cannot read the weights in {folder}: {failure}") from failure
    four_bit = (
        largest is not None
        and largest.shape[1] % GROUP == 0
        and int4_error(largest) < _FREE_INT4_ERROR
    )
    return LayerPlan(precision="int4" if four_bit else "int8", head_precision="int8")


@torch.no_grad()
def load_model(
    folder: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    plan: LayerPlan | None = None,
    optimized: bool = True,
    shard: tuple[int, int] = (0, 1),
) -> LoadedModel:
    """Loads the model in `folder` under a layer plan.

    Args:
        dtype: auto (the checkpoint's, float16 becoming bfloat16), bfloat16 or float32.
        plan: what to skip and quantize; None is the full model.
        optimized: False leaves the layers as `transformers` has them.
        shard: (index, count) loads one of several parts; the tensors of the others are not read.

    Raises:
        CheckpointError: missing, truncated or unsupported.
        ConfigurationError: there is no such shard.
        ModelMismatch: the plan is for another model.
    """
    config = read_config(folder)
    identity = fingerprint(folder)
    plan = plan or LayerPlan()
    plan.check(identity, config.num_hidden_layers)
    torch_dtype, torch_device = _dtype(dtype, config), torch.device(device)
    model = _empty_model(config, torch_dtype, plan)
    skip_sublayers(model, plan.skips)
    part = make_shard(model, plan, *shard)
    cut(model, part)
    read = _read_weights(model, folder, torch_dtype, torch_device)
    model.to(torch_device)
    if optimized:
        optimize(model, plan)
    give_back()
    held = weight_bytes(model)
    if torch_device.type == "cpu" and held >= _HUGE_PAGE_BYTES:
        use_huge_pages()
    return LoadedModel(
        model=model,
        config=config,
        fingerprint=identity,
        plan=plan,
        dtype=torch_dtype,
        device=torch_device,
        kv_layers=tuple(i for i in part.layers if i not in plan.skip_attention),
        num_kv_layers=config.num_hidden_layers - len(plan.skip_attention),
        shard=part,
        context_length=_context_length(config),
        eos_token_ids=eos_token_ids(folder, config),
        weight_bytes=held,
        tensors_read=read,
        skips=SkipSet(model),
    )
