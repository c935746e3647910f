"""The search space: plans as the parameters of an Optuna trial, and back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from slipstream.core.layer_plan import HeadPrecision, LayerPlan, Precision, Skips
from slipstream.tune.plans import PRECISIONS

Params = dict[str, Any]
_PARTS = ("attention", "mlp")


class Space:
    """Attention and MLP of each layer kept or not; the precision of the rest and of the head.

    Args:
        layers: decoder layers of the model.
        precisions: what is allowed for the layers; heads: for the head.
    """

    def __init__(
        self,
        layers: int,
        precisions: tuple[Precision, ...] = PRECISIONS,
        heads: tuple[HeadPrecision, ...] = PRECISIONS,
    ) -> None:
        self.layers = layers
        self.precisions = precisions
        self.heads = heads

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        found: dict[str, BaseDistribution] = {
            "precision": CategoricalDistribution(self.precisions),
            "head_precision": CategoricalDistribution(self.heads),
        }
        for part in _PARTS:
            for layer in range(self.layers):
                found[f"{part}.{layer}"] = CategoricalDistribution((True, False))
        return found

    def params(self, plan: LayerPlan) -> Params:
        """What makes `plan`: a part is True where it is kept."""
        skipped = {"attention": plan.skip_attention, "mlp": plan.skip_mlp}
        params: Params = {"precision": plan.precision, "head_precision": plan.head_precision}
        for part in _PARTS:
            for layer in range(self.layers):
                params[f"{part}.{layer}"] = layer not in skipped[part]
        return params

    def plan(self, params: Mapping[str, Any]) -> LayerPlan:
        """The plan of a trial; sublayers that it had no choice about are kept."""

        def skipped(part: str) -> frozenset[int]:
            return frozenset(i for i in range(self.layers) if not params.get(f"{part}.{i}", True))

        return LayerPlan(
            params["precision"], params["head_precision"], skipped("attention"), skipped("mlp")
        )

    def one_at_a_time(self, plan: LayerPlan) -> list[LayerPlan]:
        """`plan` with one more sublayer skipped, for each that it keeps."""
        found = []
        for part in _PARTS:
            for layer in range(self.layers):
                skips = _with(plan.skips, part, layer)
                if skips != plan.skips:
                    found.append(plan.with_skips(skips))
        return found

    def neighbour(self, plan: LayerPlan, generator: random.Random) -> LayerPlan:
        """One to four sublayers flipped; now and then another precision, too."""
        skips = plan.skips
        for _ in range(generator.randint(1, 4)):
            part, layer = generator.choice(_PARTS), generator.randrange(self.layers)
            skips = _with(skips, part, layer, flip=True)
        found = plan.with_skips(skips)
        if generator.random() < 0.1:
            found = replace(found, precision=generator.choice(self.precisions))
        return found


def _with(skips: Skips, part: str, layer: int, *, flip: bool = False) -> Skips:
    chosen = frozenset({layer})
    before = skips.attention if part == "attention" else skips.mlp
    after = before ^ chosen if flip else before | chosen
    if part == "attention":
        return replace(skips, attention=after)
    return replace(skips, mlp=after)
