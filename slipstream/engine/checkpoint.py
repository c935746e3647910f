"""Makes a model that runs of a model folder: just those weights that a layer plan keeps are read,
and each layer is converted before the next one is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import init_empty_weights
from torch import nn

from slipstream.core.errors import CheckpointError
from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.engine.attention import IMPLEMENTATION
from slipstream.engine.linear import weight_bytes
from slipstream.engine.memory import give_back, use_huge_pages
from slipstream.engine.model_files import (
    ModelFolder,
    WeightFiles,
    context_length,
    eos_token_ids,
)
from slipstream.engine.modeling import AutoModelForCausalLM, no_init_weights
from slipstream.engine.shards import Shard, cut, make_shard
from slipstream.engine.skips import SkipSet
from slipstream.engine.transforms import (
    convert_layers,
    decoder_layers,
    optimize,
    skip_sublayers,
    skippable,
)

# Weights of fewer bytes stay in the caches, where small pages cost little.
_HUGE_PAGE_BYTES = 16 << 20


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


def _dtype(requested: str, config: Any) -> torch.dtype:
    if requested == "auto":
        saved = getattr(config, "dtype", None)
        return torch.float32 if saved == torch.float32 else torch.bfloat16
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[requested]


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


def _empty_model(source: ModelFolder, dtype: torch.dtype, plan: LayerPlan) -> nn.Module:
    config = source.config
    try:
        # Weights that are only shapes could still be drawn, with half of torch's compiler.
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=IMPLEMENTATION
            )
        _check_supported(model, plan)
    except (ValueError, AttributeError, KeyError) as failure:
        raise CheckpointError(
            f"models of type {config.model_type!r} are not supported: {failure}"
        ) from failure
    # Sizes that no tensor can have.
    except (RuntimeError, ArithmeticError, TypeError) as failure:
        raise CheckpointError(
            f"{source.path / 'config.json'} describes no model that can be made: {failure}"
        ) from failure
    result: nn.Module = model.eval()
    return result


class _Weights:
    """Gives the parameters of a model without weights their tensors; reads nothing else.

    Attributes:
        read: names of the tensors that were read.
    """

    def __init__(
        self, model: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.read: set[str] = set()
        self._model, self._folder, self._dtype, self._device = model, folder, dtype, device
        self._files = WeightFiles(folder)
        self._tied = dict(getattr(model, "_tied_weights_keys", None) or {})
        self._wanted = {name for name, _ in model.named_parameters()}
        self._names = {module: name for name, module in model.named_modules()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__(None, None, None)

    def fill(self, part: nn.Module) -> None:
        """Reads what `part`, a module of the model, lacks. Raises CheckpointError."""
        inside = f"{self._names[part]}." if self._names[part] else ""
        for leaf, parameter in list(part.named_parameters()):
            name = inside + leaf
            source = name if name in self._files else self._tied.get(name, name)
            # What is tied to a parameter of this model becomes the same one, in `tie`.
            if parameter.is_meta and (source == name or source not in self._wanted):
                self._give(name, source, parameter.shape)

    def tie(self) -> None:
        """The head of a model that ties it to its embedding has no tensor of its own."""
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[operator]
        if isinstance(head, nn.Linear) and head.weight.is_meta:
            embedding = self._model.get_input_embeddings()  # type: ignore[operator]
            head.weight = embedding.weight

    def _give(self, name: str, source: str, shape: torch.Size) -> None:
        if source not in self._files:
            raise CheckpointError(
                f"{self._folder} lacks the tensor {name}: its weights are not whole, or not those "
                "of its config.json; fetch or copy the folder again"
            )
        # A copy: one tensor that still was a view of the file would keep all of it mapped.
        tensor = self._files.read(source).to(self._device, self._dtype, copy=True)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}, the config says {tuple(shape)}"
            )
        owner, _, leaf = name.rpartition(".")
        module = self._model.get_submodule(owner)
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        self.read.add(source)


def _fill(
    model: nn.Module, folder: Path, plan: LayerPlan, dtype: torch.dtype, device: torch.device,
    *, optimized: bool, head_basis: Path | None,
) -> frozenset[str]:  # fmt: skip
    """Reads the weights and converts them; returns the names of the tensors that were read.

    A layer is read when its turn comes to be converted, so that beside what stays there is never
    more than one layer as it is on disk, or the head.
    """
    with _Weights(model, folder, dtype, device) as weights:
        if optimized:
            convert_layers(model, plan, weights.fill)
        weights.fill(model)
        weights.tie()
    model.to(device)
    if optimized:
        optimize(model, plan, head_basis)
    return frozenset(weights.read)


@torch.no_grad()
def load_model(
    folder: Path | ModelFolder,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    plan: LayerPlan | None = None,
    optimized: bool = True,
    shard: tuple[int, int] = (0, 1),
    head_basis: Path | None = None,
) -> LoadedModel:
    """Loads the model in `folder` under a layer plan.

    Args:
        folder: what was read of a ModelFolder before is not read again.
        dtype: auto (the checkpoint's, float16 becoming bfloat16), bfloat16 or float32.
        plan: what to skip and quantize; None is the full model.
        optimized: False leaves the layers as `transformers` has them.
        shard: (index, count) loads one of several parts; the tensors of the others are not read.
        head_basis: what a screened head is made from; without it such a head is int8.

    Raises:
        CheckpointError: missing, truncated or unsupported.
        ConfigurationError: there is no such shard.
        ModelMismatch: the plan is for another model.
    """
    source = folder if isinstance(folder, ModelFolder) else ModelFolder(folder)
    config, identity = source.config, source.fingerprint
    plan = plan or LayerPlan()
    plan.check(identity, config.num_hidden_layers)
    torch_dtype, torch_device = _dtype(dtype, config), torch.device(device)
    model = _empty_model(source, torch_dtype, plan)
    skip_sublayers(model, plan.skips)
    part = make_shard(model, plan, *shard)
    cut(model, part)
    read = _fill(
        model, source.path, plan, torch_dtype, torch_device,
        optimized=optimized, head_basis=head_basis,
    )  # fmt: skip
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
        context_length=context_length(config),
        eos_token_ids=eos_token_ids(source.path, config),
        weight_bytes=held,
        tensors_read=read,
        skips=SkipSet(model),
    )
