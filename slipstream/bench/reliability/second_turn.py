"""A session's second turn: what its first token costs, by where the keys and values are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slipstream.bench.bars import Bar
from slipstream.bench.load.asks import Ask, Dialogue, Extras
from slipstream.bench.load.book import Book, Entry, known_answers
from slipstream.bench.load.doors import clock
from slipstream.bench.load.drive import in_turn
from slipstream.bench.load.outcomes import Outcome
from slipstream.bench.load.serve import Findings, fault_bar
from slipstream.bench.load.stack import until_ready
from slipstream.bench.load.workload import long_dialogues
from slipstream.bench.machine import cores
from slipstream.bench.questions import encode
from slipstream.bench.records import Question
from slipstream.bench.reliability.figures import cell, ratios, spread
from slipstream.bench.reliability.fleet import Front, begin, direct, front, sqlite_url, verifier
from slipstream.bench.reliability.pair import Pair, running_pair
from slipstream.bench.reliability.prefill import first_token
from slipstream.bench.reliability.settings import Progress, ReliabilitySettings, Result, Sheet
from slipstream.bench.services import Verifier
from slipstream.core.errors import DeadlineExceeded

ALIVE, PULLED, GONE, DIRECT = "alive", "pulled", "gone", "pulled, asked directly"
_ANSWER_TOKENS = (32, 16)
_MOST_OF_A_PREFILL = 0.3
# What follows the first turn where no template says it.
_NEW_TOKENS = 16
_FIRST = Ask("first", "first", (("user", "Count to five."),), max_tokens=8, ignore_eos=True)
_BACK_SECONDS, _POLL_SECONDS = 30.0, 0.2


@dataclass(frozen=True, slots=True)
class Turn:
    """A second turn beside the same prompt computed from its beginning.

    Attributes:
        where: the keys and values of the first turn.
        ttft, full: seconds to the first token of either; None where none came.
        cached: of the turn's prompt, the tokens that were there or pulled.
        pulls: as its verifier counts.
    """

    where: str
    repeat: int
    ttft: float | None
    full: float | None
    cached: int
    pulls: int


@dataclass(slots=True)
class _Taken:
    turns: list[Turn]
    outcomes: list[Outcome]


async def second_turn(settings: ReliabilitySettings, progress: Progress) -> Result:
    """Conversations of two turns through sessions, the first of them long.

    Raises:
        SlipstreamError: a service did not start, or the known answers could not be had.
    """
    dialogues = long_dialogues(settings.model, settings.history, settings.chats, _ANSWER_TOKENS)
    taken = _Taken([], [])
    with TemporaryDirectory(prefix="slipstream-second-turn-") as folder:
        options = ["--session-store", sqlite_url(Path(folder))]
        book = await _one_verifier(settings, dialogues, options, taken, progress)
        await _two_verifiers(settings, book, options, taken, progress)
    return _result(taken)


async def _one_verifier(
    settings: ReliabilitySettings,
    dialogues: Sequence[Dialogue],
    options: Sequence[str],
    taken: _Taken,
    progress: Progress,
) -> Book:
    """Keys and values alive, and gone with the process; on all cores. Returns the known answers."""
    progress("second turn: starting one verifier")
    async with AsyncExitStack() as exits:
        member = await begin(exits, verifier(settings, "second-turn", cores()))
        gate = await exits.enter_async_context(
            front(settings, "second-turn-gateway", [member.address], options)
        )
        async with direct(member.address) as inner:
            model = await inner.model()
        book = await known_answers(gate.door, model, dialogues, settings.out.parent, progress)
        for repeat in range(settings.repeats):
            for where in (ALIVE, GONE):
                begun = [f"{where}-{repeat}-{place}" for place in range(len(book.dialogues))]
                for name, chat in zip(begun, book.dialogues, strict=True):
                    taken.outcomes += await _turn(gate, chat, 0, name)
                if where == GONE:
                    await member.kill()
                    await member.start()
                    await _until_it_answers(gate)
                async with direct(member.address) as inner:
                    for name, chat in zip(begun, book.dialogues, strict=True):
                        await _compare(gate, inner, chat, name, (where, repeat), taken)
                progress(f"repeat {repeat + 1}, KV {where}: {_line(taken, where)}")
    return book


async def _two_verifiers(
    settings: ReliabilitySettings,
    book: Book,
    options: Sequence[str],
    taken: _Taken,
    progress: Progress,
) -> None:
    """Two gateways with one store, each before a verifier of its own: the second turn's has to
    pull what the first turn's has."""
    progress("second turn: starting two verifiers")
    async with AsyncExitStack() as exits:
        pair = await exits.enter_async_context(running_pair(settings, "second-turn"))
        gates = [
            await exits.enter_async_context(
                front(settings, f"second-turn-gateway-{name}", [member.address], options)
            )
            for name, member in (("a", pair.one), ("b", pair.other))
        ]
        inner = await exits.enter_async_context(direct(pair.other.address))
        for gate in gates:
            await _until_it_answers(gate)
        for repeat in range(settings.repeats):
            for place, chat in enumerate(book.dialogues):
                name = f"{PULLED}-{repeat}-{place}"
                taken.outcomes += await _turn(gates[0], chat, 0, name)
                await _compare(gates[1], inner, chat, name, (PULLED, repeat), taken)
            taken.turns += await _directly(settings, pair, book, repeat)
            progress(f"repeat {repeat + 1}, KV {PULLED}: {_line(taken, PULLED)}")


async def _until_it_answers(gate: Front) -> None:
    """A first answer pays for connections, and for what a verifier makes when it is first needed.

    Raises:
        DeadlineExceeded: a gateway whose verifier is back did not find it.
    """
    await until_ready(gate.child, f"{gate.url}/ready", gate.grpc)
    deadline = clock() + _BACK_SECONDS
    while (reading := await gate.http.ask(_FIRST)).failure:
        if clock() > deadline:
            raise DeadlineExceeded(f"{gate.child.name} does not answer again: {reading.failure}")
        await asyncio.sleep(_POLL_SECONDS)


async def _turn(gate: Front, chat: Sequence[Entry], turn: int, name: str) -> list[Outcome]:
    """One turn of a session: only what is new is sent."""
    entry = chat[turn]
    ask = replace(entry.ask, messages=entry.ask.messages[-1:])
    extras = Extras(cache_salt=name, session_id=name, session_turn=turn)
    return await in_turn(gate.http, [Entry(ask, entry.known)], extras)


async def _compare(
    gate: Front,
    inner: Verifier,
    chat: Sequence[Entry],
    name: str,
    of: tuple[str, int],
    taken: _Taken,
) -> None:
    """The second turn, and the same prompt as a request of its own under another salt."""
    before = await inner.wait_until_idle()
    [second] = await _turn(gate, chat, 1, name)
    after = await inner.wait_until_idle()
    [full] = await in_turn(gate.http, [chat[1]], Extras(cache_salt=f"full {name}"))
    pulls = after.kv_imports - before.kv_imports
    taken.turns.append(Turn(*of, second.ttft, full.ttft, second.cached_tokens, pulls))
    taken.outcomes += (second, full)


async def _directly(
    settings: ReliabilitySettings, pair: Pair, book: Book, repeat: int
) -> list[Turn]:
    """The same without a gateway: the second verifier is told who has the keys and values."""
    texts = [Question(str(place), "chat", chat[0].ask.messages[0][1])
             for place, chat in enumerate(book.dialogues)]  # fmt: skip
    prompts, _ = encode(texts, settings.model, sum(_ANSWER_TOKENS))
    found = []
    async with direct(pair.one.address) as one, direct(pair.other.address) as other:
        holder = (await one.model()).kv_address
        for prompt, chat in zip(prompts, book.dialogues, strict=True):
            ids, answer = prompt.token_ids, chat[0].known.token_ids
            whole = [*ids, *answer, *ids[:_NEW_TOKENS]]
            salt = f"direct {repeat} {prompt.question_id}"
            await first_token(one, ids, salt, tokens=len(answer))
            before = await other.status()
            pulled = await first_token(other, whole, salt, holder=holder)
            pulls = (await other.status()).kv_imports - before.kv_imports
            full = await first_token(other, whole)
            found.append(Turn(DIRECT, repeat, pulled.seconds, full.seconds, pulled.cached, pulls))
    return found


def _ratio(turns: Sequence[Turn], where: str) -> Any:
    some = [turn for turn in turns if turn.where == where]
    return spread(ratios([turn.ttft for turn in some], [turn.full for turn in some]))


def _line(taken: _Taken, where: str) -> str:
    return f"TTFT / full prefill's {cell(_ratio(taken.turns, where), '.3f')}"


def _result(taken: _Taken) -> Result:
    alive = _ratio(taken.turns, ALIVE)
    bars = (
        Bar(
            "TTFT of a session's second turn, KV alive / of a full prefill",
            None if alive is None else alive.median,
            _MOST_OF_A_PREFILL,
            at_least=False,
        ),
        fault_bar(taken.outcomes),
    )
    rows = tuple(_row(taken.turns, where) for where in (ALIVE, PULLED, DIRECT, GONE))
    headings = ("KV of the first turn", "TTFT, ms", "full prefill, ms", "ratio", "cached", "pulls")
    title = "Second turn of a session: median (least..most) of all conversations and repeats"
    details = {"turns": [asdict(turn) for turn in taken.turns]}
    sheet = Sheet(title, headings, rows)
    return Result(Findings("second-turn", bars, details), sheet, taken.outcomes)


def _row(turns: Sequence[Turn], where: str) -> tuple[str, ...]:
    some = [turn for turn in turns if turn.where == where]
    return (
        where,
        cell(spread(turn.ttft for turn in some), ".0f", 1000),
        cell(spread(turn.full for turn in some), ".0f", 1000),
        cell(_ratio(turns, where), ".3f"),
        cell(spread(turn.cached for turn in some), ".0f"),
        f"{sum(turn.pulls > 0 for turn in some)}/{len(some)}",
    )
