"""What a step of one row costs under any set of skipped sublayers: fitted to measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import Skips
from slipstream.engine.batch import Segment
from slipstream.engine.runner import ModelRunner

_CONTEXT = 192


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step of one row: a part that is always there, and one for each sublayer."""

    base: float
    attention: float
    mlp: float
    layers: int

    def __call__(self, skips: Skips) -> float:
        return (
            self.base
            + self.attention * (self.layers - len(skips.attention))
            + self.mlp * (self.layers - len(skips.mlp))
        )


def fit_step_cost(runner: ModelRunner, repeats: int) -> StepCost:
    """Times steps with all sublayers, without attention, without MLPs, and with neither.

    Raises:
        ConfigurationError: the sublayers cannot be skipped, or the pool has no room for a step.
    """
    layers = runner.loaded.skips.num_layers
    every = frozenset(range(layers))
    with Steps(runner, 1) as steps:
        found = timed(
            {
                "all": lambda: steps.step(1),
                "no attention": lambda: steps.step(1, Skips(attention=every)),
                "no mlp": lambda: steps.step(1, Skips(mlp=every)),
                "none": lambda: steps.step(1, Skips(every, every)),
            },
            repeats,
        )
    whole = found["all"]
    attention = max(0.0, whole - found["no attention"] + found["no mlp"] - found["none"]) / 2
    mlp = max(0.0, whole - found["no mlp"] + found["no attention"] - found["none"]) / 2
    base = max(whole - attention - mlp, 0.01 * whole)
    return StepCost(base, attention / layers, mlp / layers, layers)


def timed(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Least seconds of each action; they take turns, so that all see the same machine.

    The least, because whatever else the machine does can only add to it. Where one thread of a CPU
    does all, it is the time that it had the core.
    """
    on_one_core = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    clock = time.thread_time if on_one_core else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            started = clock()
            action()
            seconds[name].append(clock() - started)
    return {name: min(found) for name, found in seconds.items()}


class Steps:
    """A sequence of about two hundred tokens to step on, for the length of a context.

    Args:
        rows: most rows of a step.
    """

    def __init__(self, runner: ModelRunner, rows: int) -> None:
        self._runner = runner
        vocab = runner.loaded.config.vocab_size
        room = runner.loaded.context_length - rows
        self._tokens = [(7 * i) % vocab for i in range(min(_CONTEXT, room) + rows)]
        self._start = len(self._tokens) - rows
        table = runner.pool.allocate(len(self._tokens))
        if table is None:
            raise ConfigurationError("the KV pool has no room to time a step")
        self._table = table

    def __enter__(self) -> Self:
        self._runner.forward([Segment(self._tokens[: self._start], 0, self._table, 0)])
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.pool.release(self._table)

    def step(self, rows: int, skips: Skips | None = None) -> None:
        tokens = self._tokens[self._start : self._start + rows]
        with self._runner.loaded.skips.using(skips or Skips()):
            self._runner.forward([Segment(tokens, self._start, self._table, rows)])
