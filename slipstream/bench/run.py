"""One run of the benchmark: every configuration on every question, interleaved."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.aggregate import RowResult, aggregate
from slipstream.bench.configurations import (
    Configuration,
    Progress,
    check_rows,
    start_configurations,
)
from slipstream.bench.machine import cores, cpu_seconds, describe_machine, load_average
from slipstream.bench.questions import choose, encode, load_questions
from slipstream.bench.records import EXACTNESS, ROWS, Prompt, Sample
from slipstream.bench.report import document, write
from slipstream.bench.summary import Summary, summarize
from slipstream.core.errors import ConfigurationError

_WARM_UP_PROMPTS = 2
_WARM_UP_TOKENS = 16
_BUSY_LOAD = 0.7


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to run. `model` is a model folder, `limit` None for every question.

    Raises:
        ConfigurationError: a number below 1, an unknown row or exactness.
    """

    questions: Path
    model: Path
    model_name: str
    out: Path
    limit: int | None = None
    max_tokens: int = 128
    repeats: int = 3
    rows: tuple[str, ...] = ROWS
    exactness: str = "auto"

    def __post_init__(self) -> None:
        check_rows(self.rows, ROWS)
        if self.exactness not in EXACTNESS:
            raise ConfigurationError(f"exactness must be among {', '.join(EXACTNESS)}")
        limit = 1 if self.limit is None else self.limit
        if min(self.max_tokens, self.repeats, limit) < 1:
            raise ConfigurationError("limit, max-tokens and repeats must be at least 1")


def order(rows: Sequence[Any], turn: int) -> list[Any]:
    """The rows in the order of one turn: each starts in its turn, every other turn backwards.

    So no row always runs first, and none always in the wake of the same other one.
    """
    start = turn % len(rows)
    rotated = [*rows[start:], *rows[:start]]
    return rotated[::-1] if turn % 2 else rotated


def schedule(
    configurations: Sequence[Configuration], prompts: Sequence[Prompt], repeats: int
) -> Iterator[tuple[int, Prompt, list[Configuration]]]:
    """(repeat, prompt, configurations in their order), as the run takes them."""
    for repeat in range(repeats):
        for place, prompt in enumerate(prompts):
            yield repeat, prompt, order(configurations, repeat + place)


def _burnt(pids: frozenset[int]) -> float | None:
    times = [cpu_seconds(pid) for pid in pids]
    known = [value for value in times if value is not None]
    return sum(known) if len(known) == len(times) else None


async def measure(
    configurations: Sequence[Configuration],
    prompts: Sequence[Prompt],
    max_tokens: int,
    repeats: int,
    progress: Progress,
) -> list[Sample]:
    """Warms every configuration up, then takes all samples."""
    for configuration in configurations:
        progress(f"warming up {configuration.row}")
        for prompt in prompts[:_WARM_UP_PROMPTS]:
            await configuration.generate(prompt.token_ids, min(max_tokens, _WARM_UP_TOKENS))
    everyone = frozenset(pid for each in configurations for pid in each.pids)
    samples: list[Sample] = []
    total = repeats * len(prompts)
    turns = enumerate(schedule(configurations, prompts, repeats), start=1)
    for turn, (repeat, prompt, group) in turns:
        speeds = []
        for configuration in group:
            others = everyone - configuration.pids
            before = _burnt(others)
            generation, engine = await configuration.generate(prompt.token_ids, max_tokens)
            after = _burnt(others)
            burnt = None if before is None or after is None else after - before
            name, task, row = prompt.question_id, prompt.task, configuration.row
            samples.append(Sample(row, repeat, name, task, generation, engine, burnt))
            speeds.append(f"{row} {len(generation.token_ids) / generation.seconds:.1f}")
        progress(f"{turn}/{total} question {prompt.question_id}: {', '.join(speeds)} tok/s")
    return samples


def _end_on_signals() -> None:
    """SIGTERM and SIGHUP end the run as Ctrl-C does: through every `finally`."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None:
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, task.cancel)


async def run(settings: BenchSettings, progress: Progress) -> tuple[list[RowResult], Summary]:
    """Runs the benchmark and writes `settings.out`. Ends every process that it starts.

    Raises:
        SlipstreamError: a file, model, row or service is not usable; the message says which.
    """
    _end_on_signals()
    questions = choose(load_questions(settings.questions), settings.limit)
    prompts, left_out = encode(questions, settings.model, settings.max_tokens)
    if left_out:
        progress(f"left out, longer than the model's context: questions {', '.join(left_out)}")
    cpus, rows, load = cores(), check_rows(settings.rows, ROWS), load_average()
    if load is not None and load > _BUSY_LOAD:
        progress(f"the machine is busy (load {load:.1f}): the figures will not be worth much")
    async with AsyncExitStack() as stack:
        logs = settings.out.parent / f"{settings.out.stem}-logs"
        configurations = await start_configurations(
            stack,
            rows,
            settings.model,
            logs,
            cpus=cpus,
            exactness=settings.exactness,
            progress=progress,
        )
        samples = await measure(
            configurations, prompts, settings.max_tokens, settings.repeats, progress
        )
    results = aggregate(samples, rows)
    summary = summarize(results, samples)
    about = {
        "model": settings.model_name,
        "questions_file": settings.questions.name,
        "questions_left_out": left_out,
        "max_tokens": settings.max_tokens,
        "repeats": settings.repeats,
        "dtype": "bfloat16",
        "decoding": "greedy",
        "exactness": settings.exactness,
        "load_average_before": load,
    }
    write(settings.out, document(results, summary, describe_machine(len(cpus)), about))
    return results, summary
