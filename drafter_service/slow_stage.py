"""A drafter that takes its time on purpose, to see what a slow device would do to a service."""

from __future__ import annotations

import time
from collections.abc import Sequence

from drafter_service.draft import Work
from drafter_service.stage import Done, Drawn, Stage


class SlowStage:
    """Another stage whose passes take `factor` times as long. It sleeps, and computes no more.

    Its thread hears nothing while it sleeps, as it hears nothing during a pass.
    """

    def __init__(self, stage: Stage, factor: float) -> None:
        self._stage = stage
        self._factor = factor

    @property
    def depth(self) -> int:
        return self._stage.depth

    @property
    def movable(self) -> bool:
        return self._stage.movable

    def submit(self, work: Sequence[Work], done: Done) -> None:
        started = time.perf_counter()

        def late(work: Sequence[Work], drawn: Sequence[Drawn]) -> None:
            time.sleep((self._factor - 1.0) * (time.perf_counter() - started))
            done(work, drawn)

        self._stage.submit(work, late)
