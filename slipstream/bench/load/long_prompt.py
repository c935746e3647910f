"""A long prompt that arrives among streams: how long does it hold them up?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from slipstream.bench.bars import Bar
from slipstream.bench.configurations import Progress
from slipstream.bench.load.asks import Ask, Extras
from slipstream.bench.load.book import Book, Entry
from slipstream.bench.load.doors import clock
from slipstream.bench.load.outcomes import Outcome, outcome
from slipstream.bench.load.reading import Reading
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
from slipstream.bench.load.statistics import quantile
from slipstream.bench.load.workload import dialogues_of_length, long_dialogues

_STREAMS = 8
_LONG_TOKENS = 4000
_ANSWER_TOKENS = 16
# Streams must last from before the prompt until after it; so much of them is compared.
_STREAM_TOKENS, _KNOWN_TOKENS = 1500, 200
_SETTLE_SECONDS, _BEFORE_SECONDS = 3.0, 6.0
_MOST_STRETCH = 2.0


@dataclass(slots=True)
class _Gaps:
    """Between chunks of the streams, in seconds."""

    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)


async def long_prompt(
    settings: ServeSettings, progress: Progress
) -> tuple[Findings, list[Outcome]]:
    """Eight greedy streams; then a prompt of 4,000 tokens. Gaps until its first token count.

    Raises:
        SlipstreamError: the stack did not start, or could not tell the known answers.
    """
    streams = dialogues_of_length(settings.workload, _STREAMS, _KNOWN_TOKENS)
    long = long_dialogues(settings.model, _LONG_TOKENS, 1, (_ANSWER_TOKENS,))
    gaps, outcomes = _Gaps(), []
    async with started(settings, "long-prompt", (), progress) as stack:
        book = await answers_of(stack, [*streams, *long], settings, progress)
        async with leak_checks(progress, stack) as left:
            for repeat in range(max(2, settings.repeats)):
                progress(f"repeat {repeat + 1}")
                outcomes += await _round(stack, book, f"long {repeat}", gaps)
    if not gaps.before or not gaps.during:
        ratio, p95 = None, (0.0, 0.0)
    else:
        p95 = (quantile(gaps.before, 0.95), quantile(gaps.during, 0.95))
        ratio = p95[1] / p95[0]
    bar = Bar("p95 chunk gap beside a long prompt / before", ratio, _MOST_STRETCH, at_least=False)
    details = {
        "p95_gap_before": p95[0],
        "p95_gap_during": p95[1],
        "gaps_before": len(gaps.before),
        "gaps_during": len(gaps.during),
        "longest_gap_during": max(gaps.during, default=0.0),
        "long_prompt_ttft": gaps.ttft,
    }
    line = (
        f"{_STREAMS} streams: p95 chunk gap {1000 * p95[0]:.1f} ms before, {1000 * p95[1]:.1f} ms "
        f"beside a prompt of {_LONG_TOKENS} tokens, whose first token took "
        f"{', '.join(f'{each:.1f}' for each in gaps.ttft)} s"
    )
    bars = (bar, leak_bar(left), fault_bar(outcomes))
    return Findings("long-prompt", bars, details, (line,)), outcomes


async def _round(stack: Stack, book: Book, salt: str, gaps: _Gaps) -> list[Outcome]:
    *streams, long = book.entries
    extras = Extras(cache_salt=salt)
    done = asyncio.Event()

    async def stream(entry: Entry) -> Reading:
        ask = replace(entry.ask, max_tokens=_STREAM_TOKENS)
        return await stack.door.ask(ask, extras=extras, leave=lambda _: done.is_set())

    start = clock()
    tasks = [asyncio.create_task(stream(entry)) for entry in streams]
    try:
        await asyncio.sleep(_SETTLE_SECONDS + _BEFORE_SECONDS)
        arrived = clock()
        reading = await stack.door.ask(long.ask, arrived, extras)
    finally:
        done.set()
    readings = await asyncio.gather(*tasks)
    first = reading.arrivals[0] if reading.arrivals else reading.end
    gaps.ttft.append(first - arrived)
    for each in readings:
        for then, now in zip(each.arrivals, each.arrivals[1:], strict=False):
            if start + _SETTLE_SECONDS <= then and now <= arrived:
                gaps.before.append(now - then)
            elif now > arrived and then <= first:
                gaps.during.append(now - then)
    judged = [_judge(entry.ask, entry, each) for entry, each in zip(streams, readings, strict=True)]
    return [*judged, outcome(long.ask.name, long.ask.kind, reading, long.known)]


def _judge(ask: Ask, entry: Entry, reading: Reading) -> Outcome:
    """By the beginning of the answer: no longer one is known, and who was left may have less."""
    count = len(entry.known.token_ids)
    cut = replace(reading, token_ids=reading.token_ids[:count], text="", left=True)
    if len(cut.token_ids) < count and not (reading.left or reading.failure):
        cut.failure = f"the stream ended after {len(cut.token_ids)} tokens"
    return outcome(ask.name, ask.kind, cut, entry.known)
