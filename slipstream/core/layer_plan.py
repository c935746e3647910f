"""A layer plan: what makes the drafter's copy of the model cheaper."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal, get_args

from slipstream.core.errors import ConfigurationError, ModelMismatch

# int8 and int4 are weights of so many bits, with activations of 16 bits where rows are few and of
# 8 where they are many. w8a8 fixes both at 8: what a row gives does not depend on how many there
# are, which a verifier needs.
Precision = Literal["native", "int8", "int4", "w8a8"]
# screened: a rough look at the whole vocabulary, an exact one at its best tokens. It falls back to
# int8 where that cannot be had or reads no fewer bytes.
HeadPrecision = Literal[Precision, "screened"]


@dataclass(frozen=True, slots=True)
class Skips:
    """Decoder layers, by index, whose attention or MLP is left out."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Which sublayers are skipped, and at what precision the rest runs.

    Attributes:
        precision: of the linear layers inside the decoder layers; native is the model's own.
        head_precision: of the output projection.
        skip_attention, skip_mlp: indices of the decoder layers whose attention or MLP is left
            out. Their weights are never read, and a skipped attention has no KV.
        model_fingerprint: the model that the plan was made for; empty fits any.
    """

    precision: Precision = "native"
    head_precision: HeadPrecision = "native"
    skip_attention: frozenset[int] = frozenset()
    skip_mlp: frozenset[int] = frozenset()
    model_fingerprint: str = ""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("precision", self.precision, get_args(Precision)),
            ("head_precision", self.head_precision, get_args(HeadPrecision)),
        ):
            if value not in allowed:
                raise ConfigurationError(
                    f"layer plan: {name} must be one of {', '.join(allowed)}, got {value!r}"
                )

    def check_model(self, fingerprint: str) -> None:
        """Raises ModelMismatch where the plan was made for another model."""
        if self.model_fingerprint and self.model_fingerprint != fingerprint:
            raise ModelMismatch(
                f"the layer plan was made for model {self.model_fingerprint[:12]}, "
                f"this one is {fingerprint[:12]}; make a plan for it or use --layer-plan auto"
            )

    def check(self, fingerprint: str, num_layers: int) -> None:
        """Raises ModelMismatch or ConfigurationError where the plan cannot serve this model."""
        self.check_model(fingerprint)
        beyond = [i for i in self.skip_attention | self.skip_mlp if not 0 <= i < num_layers]
        if beyond:
            raise ConfigurationError(
                f"layer plan: layers {sorted(beyond)} do not exist; the model has {num_layers}"
            )

    @property
    def skips(self) -> Skips:
        return Skips(self.skip_attention, self.skip_mlp)

    def with_skips(self, skips: Skips) -> LayerPlan:
        """This plan with other sublayers left out."""
        return replace(self, skip_attention=skips.attention, skip_mlp=skips.mlp)

    def digest(self) -> str:
        """Names the plan by content: 32 hex digits."""
        return blake2b(self._json().encode(), digest_size=16).hexdigest()

    def describe(self) -> str:
        skipped = f"{len(self.skip_attention)} attention and {len(self.skip_mlp)} MLP sublayers"
        return f"{self.precision} (head {self.head_precision}), {skipped} skipped"

    def _json(self) -> str:
        data = asdict(self) | {
            "skip_attention": sorted(self.skip_attention),
            "skip_mlp": sorted(self.skip_mlp),
        }
        return json.dumps(data, indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Raises ConfigurationError where the file cannot be written."""
        try:
            path.write_text(self._json())
        except OSError as failure:
            raise ConfigurationError(f"cannot write layer plan {path}: {failure}") from failure

    @classmethod
    def load(cls, path: Path) -> LayerPlan:
        """Raises ConfigurationError where the file is missing or is not a layer plan."""
        try:
            data = json.loads(path.read_text())
            if not isinstance(data, dict):
                raise TypeError("it is not a JSON object")
            unknown = sorted(set(data) - {field.name for field in fields(cls)})
            if unknown:
                raise TypeError(f"it has no {', '.join(unknown)}")
            for name in ("skip_attention", "skip_mlp"):
                layers = data.get(name, [])
                if not isinstance(layers, list) or any(
                    type(layer) is not int or layer < 0 for layer in layers
                ):
                    raise TypeError(f"{name} must list layer numbers, got {layers}")
                data[name] = frozenset(layers)
            if not isinstance(data.get("model_fingerprint", ""), str):
                raise TypeError("model_fingerprint must be a string")
            return cls(**data)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as failure:
            raise ConfigurationError(f"cannot read layer plan {path}: {failure}") from failure
