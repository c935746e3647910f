"""A model that computes within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import LoadedModel
from slipstream.engine.runner import ModelRunner
from slipstream.tune.budget import Budget


class BoundedRunner(ModelRunner):
    """A runner that begins no pass where nothing is left of its budget: so whatever computes with
    it, answers, timings and drafts, ends within one pass.

    Args:
        loaded, kv_bytes: as of `ModelRunner`.
    """

    def __init__(self, loaded: LoadedModel, kv_bytes: int, budget: Budget) -> None:
        super().__init__(loaded, kv_bytes)
        self._budget = budget
        self._bounded = True

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Meanwhile all passes are made."""
        self._bounded = False
        try:
            yield
        finally:
            self._bounded = True

    def forward(
        self, segments: Sequence[Segment], hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As `ModelRunner.forward`. Raises OutOfTime."""
        if self._bounded:
            self._budget.check()
        return super().forward(segments, hidden)
