"""`slipstream bench reliability`: what resumption and sessions cost, and how fast they act."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from slipstream.bench.load.workload import WorkloadSettings
from slipstream.bench.processes import end_on_signals
from slipstream.bench.questions import DEFAULT_QUESTIONS
from slipstream.bench.reliability.failover import failover
from slipstream.bench.reliability.idle_sessions import idle_sessions
from slipstream.bench.reliability.second_turn import second_turn
from slipstream.bench.reliability.settings import (
    QUICK,
    Hit,
    Progress,
    ReliabilitySettings,
    Result,
    document,
)
from slipstream.bench.reliability.store import store
from slipstream.bench.report import bar_line, write
from slipstream.cli.choices import Placement
from slipstream.core.errors import ConfigurationError
from slipstream.models import resolve, served_name
from slipstream.models.progress import progress_on

_WIDTH = 130


class Scenario(StrEnum):
    store = "store"
    failover = "failover"
    second_turn = "second-turn"
    idle_sessions = "idle-sessions"


_RUNS = {
    Scenario.store: store,
    Scenario.failover: failover,
    Scenario.second_turn: second_turn,
    Scenario.idle_sessions: idle_sessions,
}


def reliability(
    scenario: Annotated[
        Scenario | None, typer.Option(help="What to measure; without it all, in turn.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small numbers where none are given: no figures.")
    ] = False,
    repeats: Annotated[int | None, typer.Option(help="Runs of everything, in turn [3].")] = None,
    users: Annotated[int | None, typer.Option(help="store: users of the closed loop [4].")] = None,
    seconds: Annotated[float | None, typer.Option(help="store: length of the loop [30].")] = None,
    singles: Annotated[
        int | None, typer.Option(help="store: requests one after the other, for TTFT [24].")
    ] = None,
    placement: Annotated[
        Placement, typer.Option(help="store: of verifier and drafter.")
    ] = Placement.auto,
    prompts: Annotated[
        str | None, typer.Option(help="failover: tokens of its prompts [512,1500].")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(help="failover: tokens of an answer [256].")
    ] = None,
    hit_after: Annotated[
        int | None, typer.Option(help="failover: tokens before the verifier is hit [48].")
    ] = None,
    hits: Annotated[
        str | None,
        typer.Option(help="failover: SIGKILL, SIGSTOP, SIGTERM: any of kill,stop,term [all]."),
    ] = None,
    history: Annotated[
        int | None, typer.Option(help="second-turn: tokens of the first prompt [1500].")
    ] = None,
    chats: Annotated[int | None, typer.Option(help="second-turn: conversations [3].")] = None,
    sessions: Annotated[int | None, typer.Option(help="idle-sessions: how many [10000].")] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            help="idle-sessions: seconds until one is forgotten [600]; it takes fewer to"
            " make them all."
        ),
    ] = None,
    stores: Annotated[
        str | None, typer.Option(help="idle-sessions: any of redis,sqlite [both].")
    ] = None,
    questions: Annotated[
        Path, typer.Option(help="store: question file in Spec-Bench's format (JSON lines).")
    ] = DEFAULT_QUESTIONS,
    limit: Annotated[
        int | None, typer.Option(min=0, help="store: at most so many questions.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="store: most new tokens of an answer.")
    ] = 96,
    model: Annotated[
        str, typer.Option(help="`default`, a folder, a .gguf file or a hub name.")
    ] = "default",
    out: Annotated[
        Path | None,
        typer.Option(help="Where the JSON goes: build/reliability.json, or by scenario."),
    ] = None,
) -> None:
    """Measure what the session store costs, how long a stream pauses when its verifier is lost,
    what a session's second turn costs, and what idle sessions take.

    Every answer of a model is compared with the known one. Ends with 1 where one was wrong, cut
    off or missing, a stream did not go on, a session was not stored, or one stayed for ever.
    """
    given = {
        "repeats": repeats,
        "users": users,
        "seconds": seconds,
        "singles": singles,
        "prompts": None if prompts is None else whole_numbers("--prompts", prompts),
        "answer": answer_tokens,
        "hit_after": hit_after,
        "hits": None if hits is None else hits_of(hits),
        "history": history,
        "chats": chats,
        "sessions": sessions,
        "ttl": ttl,
        "stores": None if stores is None else words(stores),
    }
    name = "reliability" if scenario is None else f"reliability-{scenario.value}"
    settings = ReliabilitySettings(
        model=resolve(model, progress=progress_on()),
        model_name=served_name(model),
        out=out or Path("build") / f"{name}.json",
        workload=WorkloadSettings(
            questions, 2 if quick and limit is None else limit, 0 if quick else 12, max_tokens
        ),
        placement=placement.value,
        **chosen(given, quick=quick),
    )
    errors = Console(stderr=True)

    def say(line: str) -> None:
        errors.print(line, markup=False, highlight=False, soft_wrap=True)

    wanted = list(Scenario) if scenario is None else [scenario]
    results: list[Result] = []
    try:
        asyncio.run(_run(wanted, settings, say, results))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped" if results else "stopped; nothing was written")
        raise typer.Exit(130) from None
    finally:
        # Also where a later scenario failed: the others took their time.
        if results:
            write(settings.out, document(results, settings))
            typer.echo(f"written: {settings.out}")
    # Of what may not be at all, other than of figures that a busy machine spoils.
    never = [bar for each in results for bar in each.findings.bars if bar.wanted == 0]
    if any(bar.met is False for bar in never):
        raise typer.Exit(1)


def chosen(given: Mapping[str, Any], *, quick: bool) -> dict[str, Any]:
    """What was given, and the small numbers for the rest where they are wanted."""
    told = {name: value for name, value in given.items() if value is not None}
    return {**QUICK, **told} if quick else told


def words(given: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in given.split(",") if part.strip())


def whole_numbers(option: str, given: str) -> tuple[int, ...]:
    """Raises ConfigurationError where they are not whole numbers separated by commas."""
    try:
        return tuple(int(word) for word in words(given))
    except ValueError:
        raise ConfigurationError(
            f"{option} takes whole numbers as 512,1500, got {given!r}"
        ) from None


def hits_of(given: str) -> tuple[Hit, ...]:
    """Raises ConfigurationError for any other word."""
    try:
        return tuple(Hit(word) for word in words(given))
    except ValueError:
        raise ConfigurationError(f"--hits takes any of {','.join(Hit)}, got {given!r}") from None


async def _run(
    wanted: list[Scenario], settings: ReliabilitySettings, say: Progress, results: list[Result]
) -> None:
    """One after the other; each is shown as soon as it is there."""
    end_on_signals()
    for scenario in wanted:
        results.append(await _RUNS[scenario](settings, say))
        _show(results[-1])


def _show(result: Result) -> None:
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(result.sheet.table())
    for line in (*result.findings.lines, *map(bar_line, result.findings.bars)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
