"""Drives a load through a door: arrivals that wait for nobody, or users that wait their turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence

from slipstream.bench.load.asks import Extras
from slipstream.bench.load.book import Entry
from slipstream.bench.load.doors import Door, clock, sleep_until
from slipstream.bench.load.outcomes import Outcome, Verdict, outcome

_PLAIN = Extras()
_LEAD_SECONDS = 0.05
# Before a refused user asks again, where it was not told when to.
_RETRY_SECONDS = 1.0


async def open_loop(
    door: Door, entries: Sequence[Entry], arrivals: Iterable[float], salt: str = ""
) -> list[Outcome]:
    """One request for each arrival (seconds from now), the entries in turn; all are waited for.

    Args:
        salt: of the prefix cache. Every pass through the entries has a salt of its own, so that
            what is asked again is not there already, and turns of one chat are.
    """
    start = clock() + _LEAD_SECONDS
    running = []
    for number, at in enumerate(arrivals):
        await sleep_until(start + at)
        turn, place = divmod(number, len(entries))
        extras = Extras(cache_salt=f"{salt}-{turn}")
        one = _one(door, entries[place], start + at, start, extras)
        running.append(asyncio.create_task(one))
    return list(await asyncio.gather(*running))


async def closed_loop(
    door: Door, entries: Sequence[Entry], users: int, seconds: float, salt: str = ""
) -> list[Outcome]:
    """So many users that ask again as soon as they are answered, or when a refusal told them to,
    until the time is over; what is running then is waited for. Salts as in `open_loop`."""
    start = clock()
    asked = itertools.count()

    async def user() -> list[Outcome]:
        taken = []
        while clock() < start + seconds:
            turn, place = divmod(next(asked), len(entries))
            extras = Extras(cache_salt=f"{salt}-{turn}")
            taken.append(await _one(door, entries[place], clock(), start, extras))
            if taken[-1].verdict is Verdict.REFUSED:
                again = clock() + (taken[-1].retry_after or _RETRY_SECONDS)
                await sleep_until(min(again, start + seconds))
        return taken

    taken = await asyncio.gather(*(user() for _ in range(users)))
    return [each for some in taken for each in some]


async def together(door: Door, entries: Sequence[Entry], extras: Extras = _PLAIN) -> list[Outcome]:
    """All at once."""
    start = clock()
    tasks = [_one(door, entry, start, start, extras) for entry in entries]
    return list(await asyncio.gather(*tasks))


async def in_turn(door: Door, entries: Sequence[Entry], extras: Extras = _PLAIN) -> list[Outcome]:
    """One after the other."""
    start = clock()
    return [await _one(door, entry, clock(), start, extras) for entry in entries]


async def _one(door: Door, entry: Entry, due: float, start: float, extras: Extras) -> Outcome:
    reading = await door.ask(entry.ask, due, extras)
    return outcome(entry.ask.name, entry.ask.kind, reading, entry.known, start)
