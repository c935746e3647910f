"""What the session store costs a healthy run: gateways with different ones, on one verifier."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from slipstream.bench.bars import Bar
from slipstream.bench.load.asks import Ask, Extras, http_body
from slipstream.bench.load.book import Entry, known_answers
from slipstream.bench.load.doors import HttpDoor
from slipstream.bench.load.drive import closed_loop, in_turn
from slipstream.bench.load.outcomes import Outcome
from slipstream.bench.load.serve import Findings, fault_bar
from slipstream.bench.load.statistics import Slo, figures
from slipstream.bench.load.workload import workload
from slipstream.bench.machine import cores, cpu_seconds
from slipstream.bench.measure import order
from slipstream.bench.reliability.figures import Spread, cell, differences, ratios, spread
from slipstream.bench.reliability.fleet import Front, begin, direct, drafter, front, sqlite_url
from slipstream.bench.reliability.fleet import verifier as verifier_of
from slipstream.bench.reliability.redis import running_redis
from slipstream.bench.reliability.settings import Progress, ReliabilitySettings, Result, Sheet
from slipstream.bench.services import Verifier

OFF, SQLITE, REDIS = "off", "sqlite", "redis"
_LEAST_SPEED = 0.98
_MOST_TTFT_MS = 5.0
_DRAFTER_SECONDS = 60.0
_WARM_UP_SECONDS = 5.0


@dataclass(slots=True)
class Taken:
    """Of one gateway, a value for each repeat; None where nothing was answered.

    Attributes:
        speed: tokens per second of the closed loop.
        ttft: p50 of the requests one after the other, in seconds.
        cpu: the gateway's processor seconds for each 1,000 tokens of the closed loop.
    """

    speed: list[float | None] = field(default_factory=list)
    ttft: list[float | None] = field(default_factory=list)
    cpu: list[float | None] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


async def store(settings: ReliabilitySettings, progress: Progress) -> Result:
    """Closed loops and single requests, gateway by gateway, in turned orders.

    Raises:
        SlipstreamError: a service did not start, there is no Redis server, or the known answers
            could not be had.
    """
    dialogues = workload(settings.workload)
    taken = {name: Taken() for name in (OFF, SQLITE, REDIS)}
    async with _running(settings, progress) as (inner, fronts):
        book = await known_answers(
            fronts[OFF].door, await inner.model(), dialogues, settings.out.parent, progress
        )
        for name, gate in fronts.items():
            seconds = min(settings.seconds, _WARM_UP_SECONDS)
            taken[name].outcomes += await closed_loop(
                gate.http, book.entries, settings.users, seconds, f"warm {name}"
            )
        resumable = {
            name: await _has_ids(gate.http, book.entries[0]) for name, gate in fronts.items()
        }
        for repeat in range(settings.repeats):
            names = order(list(fronts), repeat)
            for name in names:
                await _loop(
                    settings, inner, fronts[name], book.entries, f"{name} {repeat}", taken[name]
                )
                progress(f"repeat {repeat + 1}, {name}: {taken[name].speed[-1] or 0:.1f} tokens/s")
            await _singles(settings, fronts, book.entries, repeat, taken)
    outcomes = [each for some in taken.values() for each in some.outcomes]
    rows = {name: _row(each, taken[OFF]) for name, each in taken.items()}
    details = {
        "stores": {name: _details(each) for name, each in taken.items()},
        "events_carry_ids": resumable,
        "users": settings.users,
    }
    found = Findings("store", (*bars(taken), fault_bar(outcomes)), details)
    return Result(found, _sheet(rows), outcomes)


@asynccontextmanager
async def _running(
    settings: ReliabilitySettings, progress: Progress
) -> AsyncIterator[tuple[Verifier, dict[str, Front]]]:
    """Verifier and drafter as `slipstream up` sets them up, and the gateways before them."""
    progress("store: starting Redis, drafter, verifier and three gateways")
    cpus = cores()
    async with AsyncExitStack() as exits:
        folder = Path(exits.enter_context(TemporaryDirectory(prefix="slipstream-store-")))
        redis = await exits.enter_async_context(running_redis(settings.logs))
        drafts = await begin(exits, drafter(settings, "store-drafter", cpus))
        options = ("--placement", settings.placement)
        member = verifier_of(settings, "store-verifier", cpus, drafts.address, options)
        inner = await exits.enter_async_context(direct((await begin(exits, member)).address))
        await inner.wait_for_drafter(_DRAFTER_SECONDS)
        urls = {OFF: "off", SQLITE: sqlite_url(folder), REDIS: redis.url}
        fronts = {
            name: await exits.enter_async_context(
                front(settings, f"gateway-{name}", [member.address], ["--session-store", url])
            )
            for name, url in urls.items()
        }
        yield inner, fronts


async def _loop(
    settings: ReliabilitySettings,
    inner: Verifier,
    gate: Front,
    entries: Sequence[Entry],
    salt: str,
    taken: Taken,
) -> None:
    """Users that ask again as soon as they are answered."""
    await inner.wait_until_idle()
    before = cpu_seconds(gate.pid)
    outcomes = await closed_loop(gate.http, entries, settings.users, settings.seconds, salt)
    after = cpu_seconds(gate.pid)
    found = figures(outcomes, Slo())
    burnt = None if before is None or after is None else after - before
    taken.speed.append(found.tokens_per_second or None)
    taken.cpu.append(1000 * burnt / found.tokens if burnt is not None and found.tokens else None)
    taken.outcomes += outcomes


async def _singles(
    settings: ReliabilitySettings,
    fronts: Mapping[str, Front],
    entries: Sequence[Entry],
    repeat: int,
    taken: Mapping[str, Taken],
) -> None:
    """One request after the other. Each is asked of every gateway before the next: what else the
    machine does meanwhile hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in fronts}
    for place in range(settings.singles):
        entry = entries[place % len(entries)]
        for name in order(list(fronts), repeat + place):
            salt = f"alone {name} {repeat} {place}"
            [outcome] = await in_turn(fronts[name].http, [entry], Extras(cache_salt=salt))
            taken[name].outcomes.append(outcome)
            if outcome.ttft is not None:
                times[name].append(outcome.ttft)
    for name, found in times.items():
        taken[name].ttft.append(median(found) if found else None)


async def _has_ids(door: HttpDoor, entry: Entry) -> bool:
    """Whether a stream's events say where to resume: whether there is a log that costs anything."""
    body = http_body(_short(entry.ask), door.model, Extras(cache_salt="ids"))
    async with door.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line async for line in response.aiter_lines()]
    return any(line.startswith("id:") for line in lines)


def _short(ask: Ask) -> Ask:
    return Ask(ask.name, ask.kind, ask.messages, max_tokens=4)


def bars(taken: Mapping[str, Taken]) -> tuple[Bar, Bar]:
    """Redis against none: medians of what is compared repeat by repeat."""
    speed, ttft = _against(taken[REDIS], taken[OFF])
    return (
        Bar("redis / off, tokens/s", _median(speed), _LEAST_SPEED, at_least=True),
        Bar("redis - off, TTFT p50, ms", _median(ttft), _MOST_TTFT_MS, at_least=False),
    )


def _against(one: Taken, none: Taken) -> tuple[Spread | None, Spread | None]:
    """Ratio of the speeds, and difference of the TTFTs in milliseconds."""
    later = [1000 * each for each in differences(one.ttft, none.ttft)]
    return spread(ratios(one.speed, none.speed)), spread(later)


def _median(found: Spread | None) -> float | None:
    return None if found is None else found.median


def _row(one: Taken, none: Taken) -> tuple[str, ...]:
    speed, ttft = _against(one, none)
    return (
        cell(spread(one.speed)),
        cell(speed, ".3f"),
        cell(spread(one.ttft), ".1f", 1000),
        cell(ttft, "+.1f"),
        cell(spread(one.cpu), ".2f"),
    )


def _sheet(rows: Mapping[str, tuple[str, ...]]) -> Sheet:
    headings = ("store", "tokens/s", "/ off", "TTFT p50, ms", "- off, ms", "gateway CPU s / 1,000")
    title = "A healthy run by session store: median (least..most) of the repeats"
    return Sheet(title, headings, tuple((name, *row) for name, row in rows.items()))


def _details(one: Taken) -> dict[str, object]:
    content = asdict(one)
    del content["outcomes"]
    return content | {"requests": len(one.outcomes)}
