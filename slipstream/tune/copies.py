"""Copies of the model at the precisions that a search asks for, each with every sublayer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from slipstream.core.layer_plan import HeadPrecision, LayerPlan, Precision
from slipstream.engine.runner import ModelRunner

Key = tuple[Precision, HeadPrecision]


class Copies:
    """Loads copies when they are first asked for, and forgets the one that was not for longest.

    Args:
        load: makes a runner under a plan that skips nothing.
        most_bytes: of the weights of all copies together; one is always kept.
    """

    def __init__(self, load: Callable[[LayerPlan], ModelRunner], most_bytes: int) -> None:
        self._load = load
        self._most_bytes = most_bytes
        self._runners: OrderedDict[Key, ModelRunner] = OrderedDict()

    def get(self, precision: Precision, head_precision: HeadPrecision) -> ModelRunner:
        key = (precision, head_precision)
        if key not in self._runners:
            self._runners[key] = self._load(LayerPlan(*key))
            while len(self._runners) > 1 and self._bytes() > self._most_bytes:
                self._runners.popitem(last=False)
        self._runners.move_to_end(key)
        return self._runners[key]

    def close(self) -> None:
        self._runners.clear()

    def _bytes(self) -> int:
        return sum(runner.loaded.weight_bytes for runner in self._runners.values())
