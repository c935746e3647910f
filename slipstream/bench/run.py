"""One run of the benchmark: every configuration on every question, interleaved."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.aggregate import RowResult, aggregate
from slipstream.bench.configurations import Progress, start_configurations
from slipstream.bench.machine import cores, describe_machine, load_average
from slipstream.bench.measure import measure, memory_of, warm_up
from slipstream.bench.processes import end_on_signals
from slipstream.bench.questions import choose, encode, load_questions
from slipstream.bench.records import EXACTNESS
from slipstream.bench.report import document, write
from slipstream.bench.rows import BASE, ROWS, SHARDS, WHOLE, check_rows
from slipstream.bench.setups import Place
from slipstream.bench.shards import base_memory
from slipstream.bench.summary import Summary, summarize
from slipstream.core.errors import ConfigurationError

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
        check_rows(self.rows)
        if self.exactness not in EXACTNESS:
            raise ConfigurationError(f"exactness must be among {', '.join(EXACTNESS)}")
        limit = 1 if self.limit is None else self.limit
        if min(self.max_tokens, self.repeats, limit) < 1:
            raise ConfigurationError("limit, max-tokens and repeats must be at least 1")


async def run(settings: BenchSettings, progress: Progress) -> tuple[list[RowResult], Summary]:
    """Runs the benchmark and writes `settings.out`. Ends every process that it starts.

    Raises:
        SlipstreamError: a file, model, row or service is not usable; the message says which.
    """
    end_on_signals()
    questions = choose(load_questions(settings.questions), settings.limit)
    prompts, left_out = encode(questions, settings.model, settings.max_tokens)
    if left_out:
        progress(f"left out, longer than the model's context: questions {', '.join(left_out)}")
    cpus, rows, load = cores(), check_rows(settings.rows), load_average()
    if load is not None and load > _BUSY_LOAD:
        progress(f"the machine is busy (load {load:.1f}): the figures will not be worth much")
    logs = settings.out.parent / f"{settings.out.stem}-logs"
    place = Place(settings.model, logs, tuple(cpus), settings.exactness)
    async with AsyncExitStack() as stack:
        configurations = await start_configurations(stack, rows, place, progress)
        await warm_up(configurations, prompts, settings.max_tokens, progress)
        samples = await measure(
            configurations, prompts, settings.max_tokens, settings.repeats, progress
        )
        held = memory_of(configurations)
    if {WHOLE, SHARDS} <= {row.name for row in rows}:
        held[BASE] = await base_memory(place)
    results = aggregate(samples, [row.name for row in rows])
    exactness = {each.row: each.exactness for each in configurations if each.exactness}
    strict = all(value == "strict" for value in exactness.values())
    summary = summarize(results, samples, held, strict=strict)
    about = {
        "model": settings.model_name,
        "questions_file": settings.questions.name,
        "questions_left_out": left_out,
        "max_tokens": settings.max_tokens,
        "repeats": settings.repeats,
        "dtype": "bfloat16",
        "decoding": "greedy",
        "exactness": settings.exactness,
        "exactness_of_rows": exactness,
        "load_average_before": load,
    }
    machine = describe_machine(len(cpus))
    write(settings.out, document(results, summary, held, machine, about))
    return results, summary
