"""Many sessions that nobody uses: what they take in the gateway and the store, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slipstream.bench.bars import Bar
from slipstream.bench.load.doors import clock
from slipstream.bench.load.serve import Findings
from slipstream.bench.machine import memory
from slipstream.bench.questions import encode
from slipstream.bench.records import Question
from slipstream.bench.reliability.figures import Growth, growth
from slipstream.bench.reliability.fleet import Front, front
from slipstream.bench.reliability.making import Makers
from slipstream.bench.reliability.sediment import Sediment, sediment
from slipstream.bench.reliability.settings import Progress, ReliabilitySettings, Result, Sheet
from slipstream.core.errors import ConfigurationError
from slipstream.wire.fakes import FakeBehaviour, FakeVerifier
from slipstream.wire.proto import verifier_pb2

_ANSWER_TOKENS = 24
_MOST_BEND = 1.25
# How long what expired may still be found: stores clean up now and then.
_CLEANING_SECONDS = 30.0
_POLL_SECONDS = 0.5
# What cleans up now and then has had its turn; the probes of a store write about so often.
_WRITES, _PROBES_SECONDS = 50, 6.0
_WARM_SESSIONS = 32
_QUARTERS = 4
# More than any tokenizer has.
_VOCABULARY = 1 << 20
# Generations' logs are of requests, not of idle sessions: they are let expire before a look. So
# long, or such a share of the sessions' own time.
_LOG_SECONDS = 5.0
_LOG_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Level:
    """What so many idle sessions take, in bytes.

    Attributes:
        gateway: private memory of its process.
        stored: Redis' used_memory, or the file's size.
        keys: of Redis, or rows of the file.
        kinds: the same by kind.
    """

    sessions: int
    gateway: int
    stored: int
    keys: int
    kinds: dict[str, int]


@dataclass(frozen=True, slots=True)
class Found:
    """Of one store.

    Attributes:
        untouched: keys or rows when all must have expired and nobody has written since.
        left: those that were there still after some writes: a file is cleaned by who writes.
        emptied: seconds from the last session until they were gone; None where some were left.
        refused: sessions that were not made.
    """

    store: str
    levels: tuple[Level, ...]
    untouched: int
    left: int
    emptied: float | None
    made: int
    refused: int
    seconds: float

    @property
    def stored(self) -> Growth | None:
        return growth([(each.sessions, each.stored) for each in self.levels])

    @property
    def gateway(self) -> Growth | None:
        return growth([(each.sessions, each.gateway) for each in self.levels])


async def idle_sessions(settings: ReliabilitySettings, progress: Progress) -> Result:
    """One gateway before a verifier without a model, a store at a time.

    Raises:
        ConfigurationError: sessions expire before all of them are made; there is no Redis server.
        SlipstreamError: the gateway did not start.
    """
    found = [await _one(settings, name, progress) for name in settings.stores]
    bars = [bar for each in found for bar in bars_of(each)]
    details = {"stores": {each.store: _details(each) for each in found}}
    return Result(Findings("idle-sessions", tuple(bars), details), _sheet(found))


async def _one(settings: ReliabilitySettings, name: str, progress: Progress) -> Found:
    progress(f"idle sessions: {settings.sessions} in {name}")
    async with _running(settings, name) as (gate, held):
        makers = Makers(gate.http.client, settings.model_name, _ANSWER_TOKENS)
        await makers.make(_WARM_SESSIONS, "warm")
        makers.begin()
        start = clock()
        levels = [await _level(settings, gate, held, 0)]
        last = clock()
        for quarter in range(1, _QUARTERS + 1):
            until = round(settings.sessions * quarter / _QUARTERS)
            await makers.make(until - levels[-1].sessions, f"idle-{quarter}")
            last = clock()
            levels.append(await _level(settings, gate, held, until))
            progress(f"{until} sessions: {_line(levels[-1])}")
        if makers.failure:
            progress(f"not stored: {makers.refused}, the last one as {makers.failure}")
        seconds = clock() - start
        _check_in_time(settings, seconds)
        untouched = await _left(held, last + settings.ttl + _CLEANING_SECONDS)
        left = await _stirred(held, makers) if untouched else 0
        after = clock() - last
        progress(
            f"{name}: {untouched} keys left after {after:.0f} s without a write, {left} after some"
        )
        emptied = None if left else after
        return Found(
            name, tuple(levels), untouched, left, emptied, makers.made, makers.refused, seconds
        )


def log_ttl(settings: ReliabilitySettings) -> float:
    """Seconds."""
    return min(_LOG_SECONDS, _LOG_SHARE * settings.ttl)


@asynccontextmanager
async def _running(
    settings: ReliabilitySettings, name: str
) -> AsyncIterator[tuple[Front, Sediment]]:
    """The gateway, and what looks into its store."""
    async with AsyncExitStack() as exits:
        folder = Path(exits.enter_context(TemporaryDirectory(prefix="slipstream-idle-")))
        held = await exits.enter_async_context(sediment(name, folder, settings.logs))
        fake = await exits.enter_async_context(_fake(settings))
        # One client makes all of them.
        options = ["--session-store", held.url, "--max-sessions-per-key", "0"]
        options += ["--session-ttl", str(settings.ttl)]
        options += ["--log-ttl", str(log_ttl(settings))]
        gate = await exits.enter_async_context(
            front(settings, f"idle-gateway-{name}", [fake.address], options)
        )
        yield gate, held


def _fake(settings: ReliabilitySettings) -> FakeVerifier:
    """A verifier that answers at once, with tokens that the model's tokenizer knows."""
    text = "It is easy to forget that the footbridge came to the harbour by boat, in nine crates."
    [prompt], _ = encode([Question("0", "chat", text)], settings.model, 1)
    tokens = prompt.token_ids
    script = [tokens[place % len(tokens)] for place in range(_ANSWER_TOKENS)]
    model = verifier_pb2.GetModelResponse(
        model_id="fake",
        fingerprint="f" * 32,
        context_length=4096,
        vocab_size=_VOCABULARY,
        dtype="float32",
        precision="native",
        exactness="strict",
    )
    return FakeVerifier(FakeBehaviour(script, chunks=(8,), speculative=True), model)


async def _level(
    settings: ReliabilitySettings, gate: Front, held: Sediment, sessions: int
) -> Level:
    """Once the logs of the requests that made them have expired."""
    await asyncio.sleep(2 * log_ttl(settings))
    owned = memory(gate.pid)
    return Level(
        sessions,
        0 if owned is None else owned.private,
        await held.size(),
        await held.keys(),
        await held.kinds(),
    )


def _check_in_time(settings: ReliabilitySettings, seconds: float) -> None:
    if seconds > settings.ttl:
        raise ConfigurationError(
            f"making {settings.sessions} sessions took {seconds:.0f} s, and the first of them have"
            f" expired by then: give --ttl more than that, not {settings.ttl:.0f}"
        )


async def _left(held: Sediment, until: float, few: int = 0) -> int:
    """How many keys stay, until they are so few or it is that late."""
    while (left := await held.keys()) > few and clock() < until:  # noqa: ASYNC110 another process's
        await asyncio.sleep(_POLL_SECONDS)
    return left


async def _stirred(held: Sediment, makers: Makers) -> int:
    """How many keys stay when others write: as long as that makes them fewer. A store's own probes
    write, too, and clean up behind the last of the others."""
    left = await held.keys()
    while left:
        await makers.stir(_WRITES)
        before, left = left, await _left(held, clock() + _PROBES_SECONDS, _WRITES)
        if left >= before or left <= _WRITES:
            break
    return await _left(held, clock() + 4 * _PROBES_SECONDS)


def bars_of(found: Found) -> tuple[Bar, ...]:
    """Linear, and nothing left."""
    grown = found.stored
    bend = None if grown is None else grown.bend
    name = f"{found.store}: bytes of a later session / of an earlier one"
    left = found.left if found.made else None
    return (
        Bar(f"{found.store}: sessions refused or not stored", found.refused, 0, at_least=False),
        Bar(name, bend, _MOST_BEND, at_least=False),
        Bar(f"{found.store}: keys left when all had expired", left, 0, at_least=False),
    )


def _line(level: Level) -> str:
    return (
        f"gateway {level.gateway / 2**20:.1f} MiB, stored {level.stored / 2**20:.2f} MiB,"
        f" {level.keys} keys {level.kinds}"
    )


def _details(found: Found) -> dict[str, Any]:
    grown = {"stored": found.stored, "gateway": found.gateway}
    growths = {f"{name}_per_session": each and asdict(each) for name, each in grown.items()}
    return asdict(found) | growths


def _sheet(found: Sequence[Found]) -> Sheet:
    headings = (
        "store, sessions", "gateway, MiB", "stored, MiB", "keys", "bytes a session", "in gateway",
    )  # fmt: skip
    rows = tuple(_row(each, level) for each in found for level in each.levels)
    return Sheet("Idle sessions of one turn", headings, rows)


def _row(found: Found, level: Level) -> tuple[str, ...]:
    first = found.levels[0]
    more = level.sessions - first.sessions
    return (
        f"{found.store}, {level.sessions}",
        f"{level.gateway / 2**20:.1f}",
        f"{level.stored / 2**20:.2f}",
        str(level.keys),
        f"{(level.stored - first.stored) / more:.0f}" if more else "-",
        f"{(level.gateway - first.gateway) / more:.0f}" if more else "-",
    )
