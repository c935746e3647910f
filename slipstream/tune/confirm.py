"""Plans in the real pipeline: verifier and drafter as processes, as the benchmark runs them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from slipstream.bench.records import Prompt, Speculation
from slipstream.bench.rows import Setup
from slipstream.bench.services import Verifier
from slipstream.bench.setups import Place, start_setup
from slipstream.core.layer_plan import LayerPlan
from slipstream.core.throughput import Placement
from slipstream.tune.budget import Budget, OutOfTime
from slipstream.tune.drafting import KvContext

PLAIN = "plain decoding"
# A unit of the budget: services start, answer, and end.
RUN = "run in the pipeline"
_WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a plan gave in the pipeline.

    Attributes:
        tokens_per_second: median over the repeats; rates: each of them.
        acceptance: accepted over drafted tokens; None where there were none.
        differing: answers, over all repeats, that are not those of plain decoding. None may be,
            but for near-ties in fast exactness.
    """

    tokens_per_second: float
    rates: tuple[float, ...]
    acceptance: float | None
    differing: int


@dataclass(slots=True)
class _Runs:
    rates: list[float] = field(default_factory=list)
    counts: Speculation = field(default_factory=Speculation)
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, other: _Runs) -> None:
        self.rates += other.rates
        self.counts += other.counts
        self.tokens += other.tokens


async def confirm(
    plans: Mapping[str, LayerPlan],
    prompts: Sequence[Prompt],
    place: Place,
    *,
    placement: Placement,
    kv_context: KvContext,
    slowdown: float,
    max_tokens: int,
    repeats: int,
    budget: Budget,
    say: Callable[[str], None],
    first: int | None = None,
) -> dict[str, Confirmed]:
    """Greedy generations under each plan, one pair of services after the other, and without any.

    Args:
        place: its folder for logs exists, and takes plan files, too.
        placement: shared gives both services all cores, separate one of their own to each.
        slowdown: of the drafter's passes.
        repeats: the order of the plans is turned with each.
        budget: no run is begun that would not fit in, and one that takes longer is cut off.
        first: so many of the plans have all of their runs before the others have any.

    Returns:
        What was run: where the budget is small that is less than was asked for, or nothing.

    Raises:
        SlipstreamError: a service did not start or failed.
    """
    runs: dict[str, _Runs] = {}

    def setup(name: str) -> Setup:
        file = place.logs / "candidate.json"
        plans[name].save(file)
        return Setup(
            "tune",
            "own",
            all_cores=placement == "shared",
            placement=placement,
            drafter_options=(
                "--layer-plan", str(file), "--kv-context", kv_context, "--slowdown", str(slowdown),
            ),
        )  # fmt: skip

    order = list(_order(list(plans), first or len(plans), repeats))
    for number, (name, plain) in enumerate(order):
        try:
            with budget.unit(RUN):
                async with cut_off(budget.left):
                    found = await _run(setup(name), place, prompts, max_tokens, plain=plain)
        except OutOfTime:
            say(f"no time for more: {number} of {len(order)} runs in the pipeline were made")
            break
        for key, taken in zip((name, PLAIN), found, strict=False):
            runs.setdefault(key, _Runs()).add(taken)
        say(f"{name}: {runs[name].rates[-1]:.1f} tokens/s")
    return {name: _confirmed(found, runs[PLAIN].tokens) for name, found in runs.items()}


def _order(names: list[str], first: int, repeats: int) -> Iterator[tuple[str, bool]]:
    """Names in the order in which they run, and whether plain decoding runs beside: once in each
    repeat of those that come first."""
    for group in (names[:first], names[first:]):
        for repeat in range(repeats if group else 0):
            start = repeat % len(group)
            for turn, name in enumerate(group[start:] + group[:start]):
                yield name, turn == 0 and group[0] == names[0]


@asynccontextmanager
async def cut_off(seconds: float) -> AsyncIterator[None]:
    """Raises OutOfTime: what is done in it took longer; it was cancelled."""
    try:
        async with asyncio.timeout(None if math.isinf(seconds) else seconds) as timer:
            yield
    except TimeoutError:
        if timer.expired():
            raise OutOfTime from None
        raise


async def _run(
    setup: Setup, place: Place, prompts: Sequence[Prompt], max_tokens: int, *, plain: bool
) -> list[_Runs]:
    """Generations of one pair of services: with drafts and, where asked for, without."""
    async with AsyncExitStack() as stack:
        verifier = (await start_setup(stack, setup, place, drafter=True)).verifier
        await verifier.generate(prompts[0].token_ids, _WARM_UP_TOKENS, speculative=True)
        return [
            await _take(verifier, prompts, max_tokens, speculative=speculative)
            for speculative in ((True, False) if plain else (True,))
        ]


async def _take(
    verifier: Verifier, prompts: Sequence[Prompt], max_tokens: int, *, speculative: bool
) -> _Runs:
    runs, tokens, seconds = _Runs(), 0, 0.0
    for prompt in prompts:
        generation, _ = await verifier.generate(
            prompt.token_ids, max_tokens, speculative=speculative
        )
        tokens += len(generation.token_ids)
        seconds += generation.seconds
        runs.counts += generation.speculation or Speculation()
        runs.tokens.append(generation.token_ids)
    runs.rates.append(tokens / seconds)
    return runs


def _confirmed(runs: _Runs, expected: Sequence[tuple[int, ...]]) -> Confirmed:
    drafted, accepted = runs.counts.drafted, runs.counts.accepted
    differing = sum(answer != expected[i % len(expected)] for i, answer in enumerate(runs.tokens))
    acceptance = accepted / drafted if drafted else None
    return Confirmed(median(runs.rates), tuple(runs.rates), acceptance, differing)
