"""What steps cost on this machine: of the full model by rows, of its copies by sublayer."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import Skips
from slipstream.engine.batch import Segment
from slipstream.engine.runner import ModelRunner
from slipstream.tune.answers import prefill

_CONTEXT = 192
_REPEATS = 15
VERIFY_ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 17)


@dataclass(frozen=True, slots=True)
class VerifyCost:
    """Seconds of a verify step by its number of rows, measured at `rows`."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: int) -> float:
        """Straight lines between what was measured, and on beyond the last."""
        if len(self.rows) == 1:
            return self.seconds[0]
        place = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        (a, b), (low, high) = self.rows[place - 1 : place + 1], self.seconds[place - 1 : place + 1]
        return low + (high - low) * (rows - a) / (b - a)


@dataclass(frozen=True, slots=True)
class DraftCost:
    """Seconds of a draft step: a part that every plan has, and one for each sublayer that runs.

    A model fitted to measured steps, so that a search does not depend on the noise of a clock.
    """

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


def timed(actions: Mapping[str, Callable[[], object]], repeats: int = _REPEATS) -> dict[str, float]:
    """Median seconds of each action; they take turns, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    # The first of each is still warming up.
    return {name: median(found[1:]) for name, found in seconds.items()}


def measure_verify(runner: ModelRunner, rows: Sequence[int] = VERIFY_ROWS) -> VerifyCost:
    """Times steps of the full model at about two hundred tokens of context."""
    with _Steps(runner, max(rows)) as steps:
        found = timed({str(n): lambda n=n: steps.step(n) for n in rows})  # type: ignore[misc]
    seconds: list[float] = []
    for n in rows:
        # More rows never cost less: a dip would be noise, and the search would run after it.
        seconds.append(max([*seconds[-1:], found[str(n)]]))
    return VerifyCost(tuple(rows), tuple(seconds))


def measure_draft(runner: ModelRunner) -> DraftCost:
    """Times steps of one row with all sublayers, without attention, without MLPs, and with none."""
    layers = runner.loaded.skips.num_layers
    every = frozenset(range(layers))
    sets = {
        "all": Skips(),
        "no attention": Skips(attention=every),
        "no mlp": Skips(mlp=every),
        "none": Skips(every, every),
    }
    with _Steps(runner, 1) as steps:
        found = timed({name: lambda s=s: steps.step(1, s) for name, s in sets.items()})  # type: ignore[misc]
    whole = found["all"]
    attention = max(0.0, whole - found["no attention"] + found["no mlp"] - found["none"]) / 2
    mlp = max(0.0, whole - found["no mlp"] + found["no attention"] - found["none"]) / 2
    base = max(whole - attention - mlp, 0.01 * whole)
    return DraftCost(base, attention / layers, mlp / layers, layers)


def measure_step(runner: ModelRunner, skips: Skips) -> float:
    """Median seconds of a step of one row."""
    with _Steps(runner, 1) as steps:
        return timed({"": lambda: steps.step(1, skips)})[""]


class _Steps:
    """A sequence to step on, for the length of a context."""

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
        prefill(self._runner, self._tokens[: self._start], self._table)
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.pool.release(self._table)

    def step(self, rows: int, skips: Skips | None = None) -> None:
        tokens = self._tokens[self._start : self._start + rows]
        with self._runner.loaded.skips.using(skips or Skips()):
            self._runner.forward([Segment(tokens, self._start, self._table, rows)])
