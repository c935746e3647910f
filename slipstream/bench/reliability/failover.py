"""A stream whose verifier is hit: how long the client waits for its next token."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slipstream.bench.bars import Bar
from slipstream.bench.load.asks import Extras
from slipstream.bench.load.book import Entry, known_answers
from slipstream.bench.load.outcomes import Outcome, Verdict, outcome
from slipstream.bench.load.serve import Findings, fault_bar
from slipstream.bench.load.workload import long_dialogues
from slipstream.bench.measure import order
from slipstream.bench.questions import encode
from slipstream.bench.records import Question
from slipstream.bench.reliability.blow import Blow, struck_in
from slipstream.bench.reliability.figures import Pause, cell, pause, spread
from slipstream.bench.reliability.fleet import direct, front, sqlite_url
from slipstream.bench.reliability.pair import Pair, running_pair
from slipstream.bench.reliability.prefill import First, first_token
from slipstream.bench.reliability.settings import (
    Hit,
    Progress,
    ReliabilitySettings,
    Result,
    Sheet,
)
from slipstream.bench.services import Verifier
from slipstream.wire.proto import verifier_pb2

NOBODY, THE_OTHER, THE_STOPPING = "nobody", "the other one", "the one that stops"
_NO_LEASES = ("--kv-leases", "0")
_READ_AS = (
    "two verifiers with a part of the cores each, no drafter; prefill: the first token of prompt"
    " and committed tokens, asked directly, of a verifier that has the prompt where somebody still"
    " has it; detection: the rest of the pause, a pull included"
)


@dataclass(frozen=True, slots=True)
class Case:
    """What is done, to a stream of how long a prompt.

    Attributes:
        holder: who has keys and values afterwards.
    """

    hit: Hit
    prompt: int
    holder: str

    @property
    def name(self) -> str:
        return f"{self.hit}, {self.prompt} tokens, KV at {self.holder}"

    @property
    def verifier_options(self) -> tuple[str, ...]:
        """Whoever is told to stop lends what it has, unless it lends nothing at all."""
        return _NO_LEASES if self.hit is Hit.term and self.holder == NOBODY else ()


@dataclass(frozen=True, slots=True)
class Run:
    """One stream.

    Attributes:
        pause: None where the stream did not go on.
        cold, warm: the first token of prompt and committed tokens on an idle verifier that has
            nothing of it, and on one that has the prompt.
        committed: tokens that the client had when the verifier was hit.
        resumed, pulls, pulled_tokens: as the other verifier counts.
    """

    case: Case
    outcome: Outcome
    pause: Pause | None
    cold: First
    warm: First
    committed: int
    resumed: int
    pulls: int
    pulled_tokens: int

    @property
    def prefill(self) -> float:
        """What must be computed anew, in seconds: nothing is known of how long a pull takes."""
        return self.cold.seconds if self.case.holder == NOBODY else self.warm.seconds

    @property
    def detection(self) -> float | None:
        """The rest of the pause: until the loss was noticed, and everything in between."""
        return None if self.pause is None else self.pause.seconds - self.prefill


def cases(settings: ReliabilitySettings) -> list[Case]:
    """Every hit with and without a holder that survives it, for every length of prompt."""
    holders = {Hit.term: (THE_STOPPING, NOBODY)}
    return [
        Case(hit, prompt, holder)
        for prompt in settings.prompts
        for hit in settings.hits
        for holder in holders.get(hit, (NOBODY, THE_OTHER))
    ]


async def failover(settings: ReliabilitySettings, progress: Progress) -> Result:
    """Two verifiers without a drafter, a part of the cores each, behind one gateway.

    Raises:
        SlipstreamError: a service did not start, or the known answers could not be had.
    """
    asked = {
        prompt: long_dialogues(settings.model, prompt, 1, (settings.answer,))[0]
        for prompt in settings.prompts
    }
    dialogues = [replace(each, name=f"failover-{prompt}") for prompt, each in asked.items()]
    questions = [Question(each.name, "chat", each.turns[0]) for each in dialogues]
    encoded, _ = encode(questions, settings.model, settings.answer)
    ids = {prompt: each.token_ids for prompt, each in zip(asked, encoded, strict=True)}
    runs: list[Run] = []
    async with AsyncExitStack() as exits:
        folder = Path(exits.enter_context(TemporaryDirectory(prefix="slipstream-failover-")))
        progress("failover: starting two verifiers")
        pair = await exits.enter_async_context(running_pair(settings))
        options = ["--session-store", sqlite_url(folder)]
        async with front(settings, "failover-known", [pair.one.address], options) as gate:
            async with direct(pair.one.address) as inner:
                model = await inner.model()
            book = await known_answers(gate.door, model, dialogues, settings.out.parent, progress)
        entries = dict(zip(asked, book.entries, strict=True))
        for repeat in range(settings.repeats):
            for case in order(cases(settings), repeat):
                await pair.ready(case.verifier_options)
                one = _Stream(case, f"{case.name} {repeat}", entries[case.prompt], ids[case.prompt])
                runs.append(await _run(settings, pair, one, options))
                progress(f"repeat {repeat + 1}: {case.name}: {_line(runs[-1])}")
    return _result(settings, runs)


@dataclass(frozen=True, slots=True)
class _Stream:
    case: Case
    salt: str
    entry: Entry
    ids: tuple[int, ...]


async def _run(
    settings: ReliabilitySettings, pair: Pair, stream: _Stream, options: Sequence[str]
) -> Run:
    """One stream from its beginning to its end, through the loss of its verifier.

    Raises:
        InternalError: it ended before anything could be done to its verifier.
        SlipstreamError: a service did not start, or refused what was asked directly.
    """
    case, entry = stream.case, stream.entry
    # As the gateway hands a client's salt on, where there are no API keys.
    salt = f"/{stream.salt}"
    addresses = [pair.one.address, pair.other.address]
    async with AsyncExitStack() as exits:
        # A new one each time: it knows nothing of who was lost before.
        gate = await exits.enter_async_context(
            front(settings, "failover-gateway", addresses, options)
        )
        both = [await exits.enter_async_context(direct(each)) for each in addresses]
        for each in both:
            # The first prompt after a start pays for what is made when it is first needed.
            await first_token(each, stream.ids)
        cold, warm = await _prefills(both[1], stream, settings.hit_after)
        if case.holder == THE_OTHER:
            for each in both:
                await first_token(each, stream.ids, salt)
        before = [await each.wait_until_idle() for each in both]
        blow = Blow(case.hit, settings.hit_after, pair)
        finding = asyncio.create_task(blow.find(both))
        try:
            extras = Extras(cache_salt=stream.salt)
            reading = await gate.door.ask(entry.ask, extras=extras, leave=blow.look)
        finally:
            finding.cancel()
        if finding.done() and not finding.cancelled():
            finding.result()
        at = struck_in(blow, reading)
        place = 1 - addresses.index(at.member.address)
        told = await both[place].status()
        # What was stopped or asked to stop would end by itself, later.
        await at.member.kill()
    return Run(
        case=case,
        outcome=outcome(entry.ask.name, case.name, reading, entry.known, reading.due),
        pause=pause(reading.arrivals, at.moment),
        cold=cold,
        warm=warm,
        committed=at.tokens,
        **_counts(before[place], told),
    )


async def _prefills(inner: Verifier, stream: _Stream, committed: int) -> tuple[First, First]:
    """Of prompt and committed tokens: all of it, and where the prompt is there."""
    whole = [*stream.ids, *stream.entry.known.token_ids[:committed]]
    cold = await first_token(inner, whole)
    salt = f"warm {stream.salt}"
    await first_token(inner, stream.ids, salt)
    return cold, await first_token(inner, whole, salt)


def _counts(
    before: verifier_pb2.GetStatusResponse, after: verifier_pb2.GetStatusResponse
) -> dict[str, Any]:
    return {
        "resumed": after.resumed - before.resumed,
        "pulls": after.kv_imports - before.kv_imports,
        "pulled_tokens": after.kv_imported_tokens - before.kv_imported_tokens,
    }


def _line(run: Run) -> str:
    if run.pause is None:
        return f"the stream did not go on ({run.outcome.detail})"
    return f"pause {run.pause.seconds:.2f} s, of which prefill {run.prefill:.2f} s"


def _result(settings: ReliabilitySettings, runs: Sequence[Run]) -> Result:
    outcomes = [run.outcome for run in runs]
    ended = sum(run.pause is None or run.outcome.verdict is not Verdict.RIGHT for run in runs)
    bars = (
        Bar("streams that did not go on to their end", ended, 0, at_least=False),
        fault_bar(outcomes),
    )
    rows = tuple(_row(case, [run for run in runs if run.case == case]) for case in cases(settings))
    headings = (
        "case", "pause, s", "detection, s", "prefill, s", "gap before, ms", "resumed", "pulls",
    )  # fmt: skip
    title = "Pause of a stream whose verifier is hit: median (least..most) of the repeats"
    details = {"runs": [_details(run) for run in runs]}
    lines = (_READ_AS,)
    return Result(
        Findings("failover", bars, details, lines), Sheet(title, headings, rows), outcomes
    )


def _row(case: Case, runs: Sequence[Run]) -> tuple[str, ...]:
    pauses = [run.pause for run in runs if run.pause is not None]
    return (
        case.name,
        cell(spread(each.seconds for each in pauses), ".2f"),
        cell(spread(run.detection for run in runs), ".2f"),
        cell(spread(run.prefill for run in runs), ".2f"),
        cell(spread(each.before for each in pauses), ".1f", 1000),
        f"{sum(run.resumed > 0 for run in runs)}/{len(runs)}",
        f"{sum(run.pulls > 0 for run in runs)}/{len(runs)}",
    )


def _details(run: Run) -> dict[str, Any]:
    content = asdict(run)
    content["outcome"] = {
        name: content["outcome"][name] for name in ("verdict", "detail", "ttft", "cached_tokens")
    }
    return content | {"prefill": run.prefill, "detection": run.detection}
