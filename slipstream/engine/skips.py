"""Sublayers of a loaded model that are left out of the passes to come, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import Skips
from slipstream.engine.fused import FusedBlock
from slipstream.engine.transforms import decoder_layers, skippable, stand_ins


class SkipSet:
    """Leaves out sublayers of a model that has them loaded. Owned by the engine's thread.

    Passes give, bit for bit, what a model gives that was loaded without those sublayers. Their
    keys and values stay in the pool as they were, and nothing is written to them meanwhile.

    Attributes:
        current: what is left out now, beside what was never loaded.
    """

    def __init__(self, model: nn.Module) -> None:
        self.current = Skips()
        self._layers = decoder_layers(model)
        # Replaced modules of layers that are not fused, by layer and part.
        self._replaced: dict[tuple[int, str], dict[str, nn.Module]] = {}

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def use(self, skips: Skips) -> None:
        """From the next pass on.

        Raises:
            ConfigurationError: a layer does not exist, or its sublayers cannot be skipped.
        """
        if skips == self.current:
            return
        for index in sorted(skips.attention | skips.mlp):
            if index >= len(self._layers):
                raise ConfigurationError(f"layer {index} cannot be skipped: it does not exist")
            layer = self._layers[index]
            if not isinstance(layer, FusedBlock) and not skippable(layer):
                raise ConfigurationError(f"sublayers of {type(layer).__name__} cannot be skipped")
        for index, layer in enumerate(self._layers):
            if isinstance(layer, FusedBlock):
                layer.attends = layer.has_attention and index not in skips.attention
                layer.mixes = layer.has_mlp and index not in skips.mlp
            else:
                self._switch(index, "attention", index in skips.attention)
                self._switch(index, "mlp", index in skips.mlp)
        self.current = skips

    @contextmanager
    def using(self, skips: Skips) -> Iterator[None]:
        """For the passes within the context."""
        before = self.current
        self.use(skips)
        try:
            yield
        finally:
            self.use(before)

    def _switch(self, index: int, part: str, off: bool) -> None:
        """The transform of load time, done and undone."""
        layer, key = self._layers[index], (index, part)
        if off == (key in self._replaced):
            return
        modules = stand_ins(layer, part) if off else self._replaced.pop(key)
        if off:
            self._replaced[key] = {name: getattr(layer, name) for name in modules}
        for name, module in modules.items():
            setattr(layer, name, module)
