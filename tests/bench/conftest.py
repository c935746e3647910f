"""Made-up measurements for the tests of the benchmark."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slipstream.bench.records import EngineCost, Generation, Sample, Speculation


def _sample(
    row: str = "plain-1core",
    *,
    repeat: int = 0,
    question: str = "1",
    task: str = "qa",
    tokens: int = 10,
    seconds: float = 1.0,
    first_id: int = 0,
    speculation: Speculation | None = None,
    engine: EngineCost | None = None,
    others: float | None = None,
    at_once: int = 1,
) -> Sample:
    ids = tuple(range(first_id, first_id + tokens))
    generation = Generation(ids, seconds, seconds / 10, speculation)
    return Sample(
        row,
        repeat,
        question,
        task,
        generation,
        engine,
        others,
        at_once,
        seconds if at_once > 1 else None,
    )


@pytest.fixture
def sample() -> Callable[..., Sample]:
    return _sample
