"""What the measurements of `slipstream bench serve` have in common: settings, stacks, findings."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx

from slipstream.bench.bars import Bar
from slipstream.bench.configurations import Progress
from slipstream.bench.leaks import leaked, levels
from slipstream.bench.load.asks import Ask, Dialogue
from slipstream.bench.load.book import Book, known_answers
from slipstream.bench.load.outcomes import FAULTS, Outcome
from slipstream.bench.load.stack import Stack, running_stack
from slipstream.bench.load.statistics import Slo
from slipstream.bench.load.workload import WorkloadSettings
from slipstream.bench.machine import cores, describe_machine, load_average
from slipstream.core.errors import ConfigurationError

_SHOWN_FAULTS = 10
_FIRST = Ask("first", "first", (("user", "Count to twenty."),), max_tokens=32, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What to run.

    Attributes:
        model: a model folder.
        out: where the JSON goes; logs and known answers go beside it.
        rates: requests per second; empty: found by measuring what the stack can do.
        seconds: how long requests arrive at each rate.
        draft_length: of speculation that is always on.
        options: further words for every `slipstream up`.

    Raises:
        ConfigurationError: a number out of its range.
    """

    model: Path
    model_name: str
    out: Path
    workload: WorkloadSettings
    rates: tuple[float, ...] = ()
    seconds: float = 30.0
    repeats: int = 1
    draft_length: int = 4
    slo: Slo = field(default_factory=Slo)
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(not rate > 0 for rate in self.rates):
            raise ConfigurationError("rates must be above 0 requests per second")
        if min(self.repeats, self.draft_length) < 1 or not self.seconds > 0:
            raise ConfigurationError("seconds must be above 0, repeats and draft-length at least 1")

    @property
    def logs(self) -> Path:
        return self.out.parent / f"{self.out.stem}-logs"


@dataclass(frozen=True, slots=True)
class Findings:
    """Of one scenario.

    Attributes:
        bars: what was wanted, and what was measured.
        figures: whatever else is worth keeping, ready for JSON.
        lines: the same for a reader.
    """

    name: str
    bars: tuple[Bar, ...]
    figures: Mapping[str, Any]
    lines: tuple[str, ...] = ()


@asynccontextmanager
async def started(
    settings: ServeSettings,
    name: str,
    options: Sequence[str],
    progress: Progress,
    *,
    drafter: bool = True,
) -> AsyncIterator[Stack]:
    """A stack in exactness strict, so that every answer can be compared. It has answered once:
    connections are made when they are first needed, and no leak."""
    progress(f"starting {name}")
    words = ["--exactness", "strict", "--log-level", "warning", *options, *settings.options]
    async with running_stack(name, settings.model, words, settings.logs, drafter=drafter) as stack:
        await stack.door.ask(_FIRST)
        yield stack


async def answers_of(
    stack: Stack, dialogues: Sequence[Dialogue], settings: ServeSettings, progress: Progress
) -> Book:
    """The known answers, by the stack alone. Raises as `known_answers` does."""
    folder = settings.out.parent
    return await known_answers(
        stack.door, await stack.verifier.model(), dialogues, folder, progress
    )


def fault_bar(outcomes: Sequence[Outcome]) -> Bar:
    """No answer may be wrong, cut off or missing."""
    count = sum(each.verdict in FAULTS for each in outcomes)
    return Bar("wrong, truncated or missing answers", count, 0, at_least=False)


@asynccontextmanager
async def leak_checks(progress: Progress, *stacks: Stack) -> AsyncIterator[list[str]]:
    """Around a load on stacks that have served some requests. When it ends, the list that it gives
    is filled with what they still hold, or that they cannot be asked.

    Memory is not judged: the KV pool's comes into use block by block. `overload` looks at it over
    time, and so does `make soak`.
    """
    before = [await levels(stack.watched()) for stack in stacks]
    left: list[str] = []
    yield left
    for stack, held in zip(stacks, before, strict=True):
        try:
            found = await leaked(stack.watched(), held, memory_slack_mib=math.inf)
        except (OSError, httpx.HTTPError, grpc.aio.AioRpcError) as failure:
            found = [f"no answer: {failure}"]
        left += [f"{stack.model}: {line}" for line in found]
    for line in left:
        progress(f"left behind by {line}")


def leak_bar(left: Sequence[str]) -> Bar:
    """Nothing may be held when a load is over."""
    return Bar(
        "requests, blocks, leases, tasks or sockets left behind", len(left), 0, at_least=False
    )


def document(findings: Findings, settings: ServeSettings, outcomes: Sequence[Outcome]) -> Any:
    """The content of the JSON file."""
    faults = [asdict(each) for each in outcomes if each.verdict in FAULTS]
    return {
        "scenario": findings.name,
        "bars": [{**asdict(bar), "met": bar.met} for bar in findings.bars],
        **findings.figures,
        "faults": faults[:_SHOWN_FAULTS],
        "machine": describe_machine(len(cores())),
        "run": {
            "model": settings.model_name,
            "questions_file": settings.workload.questions.name,
            "chats": settings.workload.chats,
            "max_tokens": settings.workload.max_tokens,
            "seconds": settings.seconds,
            "repeats": settings.repeats,
            "options": list(settings.options),
            "load_average": load_average(),
        },
    }
