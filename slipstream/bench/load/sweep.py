"""Speculation off, on and automatic at request rates from idle to saturation, in one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from slipstream.bench.bars import Bar
from slipstream.bench.configurations import Progress
from slipstream.bench.load.arrivals import poisson, until
from slipstream.bench.load.book import Entry
from slipstream.bench.load.drive import closed_loop, open_loop
from slipstream.bench.load.outcomes import Outcome, Verdict
from slipstream.bench.load.serve import (
    ServeSettings,
    answers_of,
    fault_bar,
    leak_bar,
    leak_checks,
    started,
)
from slipstream.bench.load.stack import Stack
from slipstream.bench.load.statistics import Figures, figures
from slipstream.bench.load.workload import workload
from slipstream.bench.measure import order

OFF, ON, AUTOMATIC = "off", "on", "automatic"
LEAST_OF_THE_BETTER = 0.97
# Of what a stack can do with as many users as it has use for.
_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.2)
# What a stack decides by measuring it decides by the size of the batch: it has seen all of them
# before it is measured. The last is more than it has use for.
_WARM_UP_USERS, _WARM_UP_SECONDS = (1, 3, 6, 24), 10.0
_LEAST_REQUESTS = 8


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to speculate, and the stack that does it.

    Off is what a user who wants none would run: a verifier alone, on all cores. On takes up to so
    many drafts in every step, whatever they are worth. Automatic is what comes without options.
    """

    name: str
    options: tuple[str, ...] = ()
    drafter: bool = True


@dataclass(frozen=True, slots=True)
class Point:
    """One mode at one rate of requests per second."""

    rate: float
    mode: str
    figures: Figures


def modes(draft_length: int) -> tuple[Mode, ...]:
    return (
        Mode(OFF, drafter=False),
        Mode(ON, ("--draft-length", str(draft_length))),
        Mode(AUTOMATIC),
    )


async def sweep(
    settings: ServeSettings, progress: Progress
) -> tuple[list[Point], tuple[Bar, ...], list[Outcome]]:
    """Every mode at every rate: the same requests at the same times, the modes in turned orders.

    Raises:
        SlipstreamError: a stack did not start, or could not tell the known answers.
    """
    dialogues = workload(settings.workload)
    async with AsyncExitStack() as exits:
        stacks: dict[str, Stack] = {}
        for mode in modes(settings.draft_length):
            ready = started(settings, mode.name, mode.options, progress, drafter=mode.drafter)
            stacks[mode.name] = await exits.enter_async_context(ready)
        book = await answers_of(stacks[OFF], dialogues, settings, progress)
        seen, capacity = await _capacities(stacks, book.entries, progress)
        for stack in stacks.values():
            await stack.verifier.wait_until_idle()
        async with leak_checks(progress, *stacks.values()) as left:
            rates = settings.rates or tuple(_round(share * capacity) for share in _SHARES)
            taken = await _measure(stacks, book.entries, rates, settings, progress)
    points = [
        Point(rate, mode, figures(outcomes, settings.slo, seconds))
        for (rate, mode), (outcomes, seconds) in taken.items()
    ]
    everything = [*seen, *(each for outcomes, _ in taken.values() for each in outcomes)]
    return points, (*bars(points), leak_bar(left), fault_bar(everything)), everything


async def _capacities(
    stacks: Mapping[str, Stack], entries: Sequence[Entry], progress: Progress
) -> tuple[list[Outcome], float]:
    """Warms all stacks up as far as they go; the most requests per second that one of them did."""
    seen, best = [], 0.0
    for name, stack in stacks.items():
        progress(f"warming up {name}")
        for users in _WARM_UP_USERS:
            outcomes = await closed_loop(
                stack.door, entries, users, _WARM_UP_SECONDS, f"warm-{name}-{users}"
            )
            # All that was asked, over the time in which it was: the last ones end when they end.
            lasted = max(each.due + each.e2e for each in outcomes)
            answered = sum(each.verdict is not Verdict.REFUSED for each in outcomes)
            progress(f"{name}: {answered / lasted:.2f} requests/s with {users} users")
            seen += outcomes
        best = max(best, answered / lasted)
    return seen, best


async def _measure(
    stacks: Mapping[str, Stack],
    entries: Sequence[Entry],
    rates: Sequence[float],
    settings: ServeSettings,
    progress: Progress,
) -> dict[tuple[float, str], tuple[list[Outcome], float]]:
    """Outcomes and seconds by rate and mode, the repeats together."""
    taken: dict[tuple[float, str], tuple[list[Outcome], float]] = {}
    for repeat in range(settings.repeats):
        for place, rate in enumerate(rates):
            seed = settings.workload.seed + 1000 * repeat + place
            seconds = max(settings.seconds, _LEAST_REQUESTS / rate)
            arrivals = until(seconds, poisson(rate, seed)) or [0.0]
            for name in order(list(stacks), repeat + place):
                stack = stacks[name]
                await stack.verifier.wait_until_idle()
                outcomes = await open_loop(stack.door, entries, arrivals, f"{repeat}-{place}")
                before, lasted = taken.get((rate, name), ([], 0.0))
                length = max(each.due + each.e2e for each in outcomes)
                taken[rate, name] = ([*before, *outcomes], lasted + length)
                speed = sum(each.tokens for each in outcomes) / length
                progress(f"{rate:g} requests/s, {name}: {speed:.1f} tokens/s in {length:.0f} s")
    return taken


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")


def bars(points: Sequence[Point]) -> tuple[Bar, ...]:
    """Automatic against the better of on and off, in throughput and in p95 TPOT, at each rate."""
    found = []
    for rate in sorted({point.rate for point in points}):
        at = {point.mode: point.figures for point in points if point.rate == rate}
        name = f"{rate:g} requests/s: automatic / the better of on and off"
        speed, tpot = _ratios(at)
        found.append(Bar(f"{name}, tokens/s", speed, LEAST_OF_THE_BETTER, at_least=True))
        found.append(Bar(f"{name}, p95 TPOT", tpot, LEAST_OF_THE_BETTER, at_least=True))
    return tuple(found)


def _ratios(at: Mapping[str, Figures]) -> tuple[float | None, float | None]:
    """Above 1 is better than both. None where a mode has no figure."""
    if not {OFF, ON, AUTOMATIC} <= at.keys():
        return None, None
    better = max(at[OFF].tokens_per_second, at[ON].tokens_per_second)
    speed = at[AUTOMATIC].tokens_per_second / better if better > 0 else None
    times = {name: each.tpot.p95 for name, each in at.items() if each.tpot is not None}
    if not {OFF, ON, AUTOMATIC} <= times.keys() or times[AUTOMATIC] <= 0:
        return speed, None
    return speed, min(times[OFF], times[ON]) / times[AUTOMATIC]
