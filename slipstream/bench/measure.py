"""Takes the samples: every configuration on every question, interleaved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from slipstream.bench.configurations import Configuration, Progress
from slipstream.bench.machine import Memory, cpu_seconds, memory
from slipstream.bench.records import Prompt, Sample

_WARM_UP_PROMPTS = 2


def order(rows: Sequence[Any], turn: int) -> list[Any]:
    """The rows in the order of one turn: each starts in its turn, every other turn backwards.

    So no row always runs first, and none always in the wake of the same other one.
    """
    start = turn % len(rows)
    rotated = [*rows[start:], *rows[:start]]
    return rotated[::-1] if turn % 2 else rotated


def schedule(
    configurations: Sequence[Configuration], prompts: Sequence[Prompt], repeats: int
) -> Iterator[tuple[int, list[Prompt], list[Configuration]]]:
    """(repeat, prompts, configurations in their order), as the run takes them: one prompt for
    every configuration that takes one at once, and after every k-th prompt the last k for those
    that take k. Prompts beyond the last k are left out there, unless there are fewer than k."""
    for repeat in range(repeats):
        for place, prompt in enumerate(prompts):
            ordered = order(configurations, repeat + place)
            yield repeat, [prompt], [each for each in ordered if each.at_once == 1]
            for size in sorted({each.at_once for each in configurations} - {1}):
                at_once = min(size, len(prompts))
                if (place + 1) % at_once == 0:
                    group = list(prompts[place + 1 - at_once : place + 1])
                    yield repeat, group, [each for each in ordered if each.at_once == size]


def _burnt(pids: Iterable[int]) -> float | None:
    times = [cpu_seconds(pid) for pid in pids]
    known = [value for value in times if value is not None]
    return sum(known) if len(known) == len(times) else None


async def _take(
    configuration: Configuration,
    repeat: int,
    prompts: Sequence[Prompt],
    max_tokens: int,
    others: Iterable[int],
) -> list[Sample]:
    """Runs a configuration on prompts, side by side where there are several."""
    before = _burnt(others)
    ids = [prompt.token_ids for prompt in prompts]
    generations, engine = await configuration.generate(ids, max_tokens)
    after = _burnt(others)
    count = len(prompts)
    burnt = None if before is None or after is None else (after - before) / count
    group = max(each.seconds for each in generations) if count > 1 else None
    return [
        Sample(
            configuration.row, repeat, prompt.question_id, prompt.task, generation, engine,
            burnt, count, group,
        )
        for prompt, generation in zip(prompts, generations, strict=True)
    ]  # fmt: skip


async def warm_up(
    configurations: Sequence[Configuration],
    prompts: Sequence[Prompt],
    max_tokens: int,
    progress: Progress,
) -> None:
    """Lets every configuration answer some prompts in full: what adapts to the machine settles."""
    for configuration in configurations:
        progress(f"warming up {configuration.row}")
        for start in range(0, min(_WARM_UP_PROMPTS, len(prompts)), configuration.at_once):
            ids = [prompt.token_ids for prompt in prompts[start : start + configuration.at_once]]
            await configuration.generate(ids, max_tokens)


async def measure(
    configurations: Sequence[Configuration],
    prompts: Sequence[Prompt],
    max_tokens: int,
    repeats: int,
    progress: Progress,
) -> list[Sample]:
    """Takes all samples."""
    everyone = {pid for each in configurations for pid in each.processes.values()}
    samples: list[Sample] = []
    plan = list(schedule(configurations, prompts, repeats))
    for turn, (repeat, asked, group) in enumerate(plan, start=1):
        speeds = []
        for configuration in group:
            others = everyone - set(configuration.processes.values())
            taken = await _take(configuration, repeat, asked, max_tokens, others)
            samples += taken
            tokens = sum(len(sample.generation.token_ids) for sample in taken)
            seconds = sum(sample.share_seconds for sample in taken)
            speeds.append(f"{configuration.row} {tokens / seconds:.1f}")
        names = ", ".join(prompt.question_id for prompt in asked)
        progress(f"{turn}/{len(plan)} question {names}: {', '.join(speeds)} tok/s")
    return samples


def memory_of(configurations: Sequence[Configuration]) -> dict[str, Memory]:
    """Of every process, by name."""
    pids = {name: pid for each in configurations for name, pid in each.processes.items()}
    known = {name: memory(pid) for name, pid in pids.items()}
    return {name: held for name, held in known.items() if held is not None}
