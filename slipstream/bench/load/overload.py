"""Four times what the stack can do, for two minutes: who is served, who is refused, what stays."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from slipstream.bench.bars import Bar
from slipstream.bench.configurations import Progress
from slipstream.bench.load.arrivals import poisson, until
from slipstream.bench.load.book import Entry
from slipstream.bench.load.doors import clock, sleep_until
from slipstream.bench.load.drive import closed_loop, open_loop
from slipstream.bench.load.outcomes import Outcome, Verdict
from slipstream.bench.load.serve import (
    Findings,
    ServeSettings,
    answers_of,
    fault_bar,
    leak_bar,
    leak_checks,
    started,
)
from slipstream.bench.load.stack import Stack
from slipstream.bench.load.statistics import Figures, Latency, figures, latency
from slipstream.bench.load.watch import watching
from slipstream.bench.load.workload import workload

_TIMES_CAPACITY = 4.0
_OVERLOAD_SECONDS = 120.0
_CALM_SHARE = 0.5
# How many load it first, and how long one alone asks after them: until drafts pay again.
_USERS, _ALONE_SECONDS = 24, 3.0
_BACK_SECONDS = 10.0
_REFUSED_SECONDS = 0.1
_MOST_TTFT, _MOST_TPOT = 1.5, 1.25
# A pool that the load before the overload fills: the memory of a larger one comes into use block by
# block for minutes, which is no leak and looks like one. There is room for three times what runs.
_POOL = ("--kv-cache-gib", "0.5")


@dataclass(frozen=True, slots=True)
class _Phases:
    """What was asked before, during and after, and who grew meanwhile."""

    before: Figures
    during: Figures
    after: Figures
    refusals: Latency | None
    grown: list[str]
    capacity: float


async def overload(settings: ServeSettings, progress: Progress) -> tuple[Findings, list[Outcome]]:
    """A calm stretch, the overload, and from ten seconds after its end the calm stretch again.

    Requests come over HTTP. `settings.rates`, where given, is the capacity in requests per second.

    Raises:
        SlipstreamError: the stack did not start, or could not tell the known answers.
    """
    dialogues = workload(settings.workload)
    async with started(settings, "overload", _POOL, progress) as stack:
        book = await answers_of(stack, dialogues, settings, progress)
        # What is held is compared with a stack that has seen load: connections, too, are made
        # when they are first needed.
        warm, capacity = await _warm(stack, book.entries, settings, progress)
        async with leak_checks(progress, stack) as left:
            phases, asked = await _phases(stack, book.entries, capacity, settings, progress)
    everything = [*warm, *asked]
    bars = (*_bars(phases, everything), leak_bar(left))
    return Findings("overload", bars, _details(phases), _lines(phases)), everything


async def _warm(
    stack: Stack, entries: Sequence[Entry], settings: ServeSettings, progress: Progress
) -> tuple[list[Outcome], float]:
    """A load of many users, and the requests per second that it came to, or the given ones.

    They count from the middle to the end of the load: not how it begins, when the first answers
    are yet to come, nor how it ends, with fewer and fewer users.
    """
    warm = await closed_loop(stack.http, entries, _USERS, settings.seconds, "capacity")
    middle = settings.seconds / 2
    answered = sum(
        each.verdict is Verdict.RIGHT and middle <= each.due + each.e2e < settings.seconds
        for each in warm
    )
    capacity = settings.rates[0] if settings.rates else max(1, answered) / middle
    progress(f"capacity: {capacity:.2f} requests/s with {_USERS} users")
    alone = await closed_loop(stack.http, entries, 1, _ALONE_SECONDS, "alone")
    await stack.verifier.wait_until_idle()
    return [*warm, *alone], capacity


async def _phases(
    stack: Stack,
    entries: Sequence[Entry],
    capacity: float,
    settings: ServeSettings,
    progress: Progress,
) -> tuple[_Phases, list[Outcome]]:
    calm = until(settings.seconds, poisson(_CALM_SHARE * capacity, settings.workload.seed))
    before = await open_loop(stack.http, entries, calm or [0.0], "before")
    progress(f"{_TIMES_CAPACITY:g} x that for {_OVERLOAD_SECONDS:.0f} s")
    start = clock()
    arrivals = until(_OVERLOAD_SECONDS, poisson(_TIMES_CAPACITY * capacity, 1))
    async with watching(stack) as watch:
        during = asyncio.create_task(open_loop(stack.http, entries, arrivals, "during"))
        await sleep_until(start + _OVERLOAD_SECONDS)
        grown = watch.growth()
    progress(f"the end; {_BACK_SECONDS:.0f} s later all must be as before")
    await asyncio.sleep(_BACK_SECONDS)
    after = await open_loop(stack.http, entries, calm or [0.0], "after")
    hard = await during
    refused = [each.e2e - each.late for each in hard if each.verdict is Verdict.REFUSED]
    sums = [figures(each, settings.slo) for each in (before, hard, after)]
    phases = _Phases(sums[0], sums[1], sums[2], latency(refused), grown, capacity)
    return phases, [*before, *hard, *after]


def _bars(phases: _Phases, everything: Sequence[Outcome]) -> tuple[Bar, ...]:
    refusals = phases.refusals
    calm = sum(each.verdicts.get(Verdict.REFUSED, 0) for each in (phases.before, phases.after))
    slowest = None if refusals is None else refusals.most
    ttft = _ratio(phases.after.ttft, phases.before.ttft)
    tpot = _ratio(phases.after.tpot, phases.before.tpot)
    return (
        fault_bar(everything),
        Bar("slowest refusal, s", slowest, _REFUSED_SECONDS, at_least=False),
        Bar("processes whose memory grew", len(phases.grown), 0, at_least=False),
        Bar("p95 TTFT ten seconds after / before", ttft, _MOST_TTFT, at_least=False),
        Bar("p95 TPOT ten seconds after / before", tpot, _MOST_TPOT, at_least=False),
        Bar("requests refused while it was calm", calm, 0, at_least=False),
    )


def _ratio(now: Latency | None, then: Latency | None) -> float | None:
    return None if now is None or then is None else now.p95 / then.p95


def _details(phases: _Phases) -> dict[str, Any]:
    return {
        "capacity_requests_per_second": phases.capacity,
        "before": asdict(phases.before),
        "during": asdict(phases.during),
        "after": asdict(phases.after),
        "refusals": None if phases.refusals is None else asdict(phases.refusals),
        "memory_growth": phases.grown,
    }


def _lines(phases: _Phases) -> tuple[str, ...]:
    refusals = phases.refusals
    taken = "none" if refusals is None else f"{refusals.count}, p99 {1000 * refusals.p99:.0f} ms"
    return (
        f"during: {dict(phases.during.verdicts)}; refusals: {taken}",
        f"memory: {'; '.join(phases.grown) or 'flat'}",
    )
