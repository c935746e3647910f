"""How the drafter's rows become tokens: by the model in this process, or along a row of shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from drafter_service.draft import Work
from slipstream.engine.draws import Draws
from slipstream.engine.runner import ModelRunner


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the drafter drew for one sequence in one pass.

    Attributes:
        tokens: in order; all but the last agree with the guesses. Empty where the pass did not
            reach the sequence's end.
        confidence: probability that the drafter gives each of them; empty where nobody asked.
        error: why nothing was drawn, where that is a fault.
    """

    tokens: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    error: str = ""


Done = Callable[[Sequence[Work], Sequence[Drawn]], None]


class Stage(Protocol):
    """Runs forward passes. Owned by the engine's thread.

    Attributes:
        depth: how many passes may be under way.
        movable: whether the passes follow this process to other cores.
    """

    @property
    def depth(self) -> int: ...

    @property
    def movable(self) -> bool: ...

    def submit(self, work: Sequence[Work], done: Done) -> None:
        """Runs one pass and calls `done` on the engine's thread, at once or later, in order.

        Raises:
            Exception: the pass failed as a whole; `done` is then not called.
        """


class LocalStage:
    """The model in this process."""

    depth = 1
    movable = True

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner

    def submit(self, work: Sequence[Work], done: Done) -> None:
        done(work, draw_all(work, self._runner.forward([item.segment for item in work])))


def draw_all(work: Sequence[Work], logits: torch.Tensor) -> list[Drawn]:
    """Draws for each sequence of a pass from its logits, [wanted, vocab]."""
    draws = Draws(logits)
    drawn, row = [], 0
    for item in work:
        drawn.append(draw(item, draws, row))
        row += item.segment.num_logits
    return drawn


def draw(item: Work, draws: Draws, row: int) -> Drawn:
    """Draws from the rows of one sequence, as far as they agree with its guesses."""
    if not item.segment.num_logits:
        return Drawn()
    try:
        tokens = draws.run(row, item.draft.sequence, item.guesses)
    except Exception as failure:
        return Drawn(error=f"the drafter could not draw a token: {failure}")
    if not item.rate:
        return Drawn(tuple(tokens))
    temperature = item.draft.sequence.params.temperature
    rated = (draws.probability(row + i, token, temperature) for i, token in enumerate(tokens))
    return Drawn(tuple(tokens), tuple(rated))
