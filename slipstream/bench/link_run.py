"""Speed against the link between verifier and drafter: one run of `slipstream bench link`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.aggregate import RowResult, aggregate_row
from slipstream.bench.configurations import Progress
from slipstream.bench.link import Link
from slipstream.bench.machine import cores
from slipstream.bench.measure import order
from slipstream.bench.questions import choose, encode, load_questions
from slipstream.bench.records import Prompt, Sample
from slipstream.bench.rows import Setup
from slipstream.bench.services import Verifier
from slipstream.bench.setups import Place, start_setup
from slipstream.core.errors import ConfigurationError

# After the link has changed, so many answers for what adapts to it to settle.
_SETTLING_PROMPTS = 1


@dataclass(frozen=True, slots=True)
class Point:
    """A link to measure over; `plain` uses none.

    Attributes:
        round_trip: seconds.
        megabits: per second and direction; None: as much as the machine can do.
    """

    round_trip: float = 0.0
    megabits: float | None = None
    plain: bool = False

    @property
    def name(self) -> str:
        if self.plain:
            return "plain"
        width = "" if self.megabits is None else f", {self.megabits:g} Mb/s"
        return f"{self.round_trip * 1000:g} ms{width}"


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What to run. `model` is a model folder, `limit` None for every question.

    Raises:
        ConfigurationError: a number out of its range, or nothing to measure.
    """

    questions: Path
    model: Path
    model_name: str
    out: Path
    round_trips_ms: tuple[float, ...] = (0.0, 1.0, 5.0, 20.0)
    megabits: tuple[float | None, ...] = (None,)
    kv_context: str = "prompt"
    limit: int | None = None
    max_tokens: int = 128
    repeats: int = 3
    exactness: str = "auto"

    def __post_init__(self) -> None:
        if not self.round_trips_ms or min(self.round_trips_ms) < 0:
            raise ConfigurationError("round trips must be milliseconds, 0 or more, at least one")
        if not self.megabits or any(width is not None and width <= 0 for width in self.megabits):
            raise ConfigurationError("bandwidths must be above 0 Mb/s, at least one")
        if min(self.max_tokens, self.repeats, 1 if self.limit is None else self.limit) < 1:
            raise ConfigurationError("limit, max-tokens and repeats must be at least 1")

    @property
    def points(self) -> list[Point]:
        links = [Point(ms / 1000, width) for width in self.megabits for ms in self.round_trips_ms]
        return [Point(plain=True), *links]


@dataclass(frozen=True, slots=True)
class PointResult:
    """What was measured over one link.

    Attributes:
        ratio: speed over that of plain decoding on the same core.
        bytes_per_token: over the link in both directions, for each generated token: commands,
            proposals, and keys and values where the drafter fetches them.
        differing: questions answered otherwise than by plain decoding.
    """

    point: Point
    row: RowResult
    ratio: float
    bytes_per_token: float
    differing: int


@dataclass(slots=True)
class _Taken:
    samples: list[Sample]
    carried: int = 0


async def _take(
    verifier: Verifier, link: Link, point: Point, prompts: Sequence[Prompt], repeat: int,
    max_tokens: int, taken: _Taken,
) -> None:  # fmt: skip
    """All prompts over one link, after some whose figures are dropped."""
    link.round_trip = point.round_trip
    link.bytes_per_second = None if point.megabits is None else point.megabits * 1e6 / 8
    speculative = not point.plain
    for prompt in prompts[:_SETTLING_PROMPTS]:
        await verifier.generate(prompt.token_ids, max_tokens, speculative=speculative)
    before = link.outward.carried + link.homeward.carried
    for prompt in prompts:
        generation, engine = await verifier.generate(
            prompt.token_ids, max_tokens, speculative=speculative
        )
        name, task = prompt.question_id, prompt.task
        taken.samples.append(Sample(point.name, repeat, name, task, generation, engine))
    taken.carried += link.outward.carried + link.homeward.carried - before


async def measure_links(settings: LinkSettings, progress: Progress) -> list[PointResult]:
    """Runs every point in every repeat, in turned orders. Ends every process that it starts.

    Needs an event loop of `link.precise_loop`.

    Raises:
        SlipstreamError: a file, model or service is not usable; the message says which.
    """
    questions = choose(load_questions(settings.questions), settings.limit)
    prompts, _ = encode(questions, settings.model, settings.max_tokens)
    setup = Setup(
        "link",
        "own",
        drafter_options=("--kv-context", settings.kv_context, "--kv-transport", "grpc"),
    )
    logs = settings.out.parent / f"{settings.out.stem}-logs"
    place = Place(settings.model, logs, tuple(cores()), settings.exactness)
    points = settings.points
    taken = {point: _Taken([]) for point in points}
    async with AsyncExitStack() as stack:
        link = await stack.enter_async_context(Link())
        progress("starting verifier and drafter")
        running = await start_setup(stack, setup, place, drafter=True, link=link)
        for repeat in range(settings.repeats):
            for point in order(points, repeat):
                progress(f"repeat {repeat + 1}/{settings.repeats}: {point.name}")
                await _take(
                    running.verifier, link, point, prompts, repeat, settings.max_tokens,
                    taken[point],
                )  # fmt: skip
    return _results(taken)


def _results(taken: dict[Point, _Taken]) -> list[PointResult]:
    """In the order of the points, of which the first is plain decoding."""
    plain = next(iter(taken))
    expected = _answers(taken[plain].samples)
    speed = aggregate_row(plain.name, taken[plain].samples).tokens_per_second
    results = []
    for point, found in taken.items():
        row = aggregate_row(point.name, found.samples)
        answers = _answers(found.samples)
        results.append(
            PointResult(
                point=point,
                row=row,
                ratio=row.tokens_per_second / speed,
                bytes_per_token=found.carried / row.generated_tokens,
                differing=sum(answers[name] != expected[name] for name in expected),
            )
        )
    return results


def _answers(samples: Sequence[Sample]) -> dict[str, set[tuple[int, ...]]]:
    answers: dict[str, set[tuple[int, ...]]] = {}
    for sample in samples:
        answers.setdefault(sample.question_id, set()).add(sample.generation.token_ids)
    return answers
