"""Memory of a stack's processes over time: is it flat?"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from slipstream.bench.load.stack import Stack
from slipstream.bench.machine import memory

_EVERY_SECONDS = 1.0
# Of a run's samples: what is compared at its end, and the length of both stretches.
_EARLY, _STRETCH = 0.4, 0.1
# Fewer are no judgement: a KV pool comes into use block by block, for a minute or two.
_LEAST_SAMPLES = 90
_MORE_BYTES = 32 * 1024 * 1024
_MORE_SHARE = 0.05


@dataclass(slots=True)
class Watch:
    """Samples of private bytes, by process name and id, a second apart."""

    samples: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(list))

    def look(self, stack: Stack) -> None:
        for name, pid in stack.pids().items():
            if (held := memory(pid)) is not None:
                self.samples[name, pid].append(held.private)

    def growth(self) -> list[str]:
        """A line for each process that has grown since it was warm; one that did not live long
        enough to be is not judged."""
        return [
            f"{name}: memory grew from {early >> 20} to {late >> 20} MiB"
            for (name, _), taken in self.samples.items()
            if (both := early_and_late(taken)) is not None
            for early, late in (both,)
            if late - early > max(_MORE_BYTES, _MORE_SHARE * early)
        ]


def early_and_late(taken: Sequence[int]) -> tuple[int, int] | None:
    """Medians of a stretch at two fifths of the samples, and of the last; None of too few."""
    if len(taken) < _LEAST_SAMPLES:
        return None
    stretch = max(1, round(_STRETCH * len(taken)))
    begin = round(_EARLY * len(taken))
    return int(median(taken[begin : begin + stretch])), int(median(taken[-stretch:]))


@asynccontextmanager
async def watching(stack: Stack) -> AsyncIterator[Watch]:
    """Looks once a second for the length of the context."""
    watch = Watch()

    async def look() -> None:
        while True:
            watch.look(stack)
            await asyncio.sleep(_EVERY_SECONDS)

    task = asyncio.create_task(look())
    try:
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
