"""What `slipstream bench reliability` runs, and what each scenario hands back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.table import Table

from slipstream.bench.load.outcomes import FAULTS, Outcome
from slipstream.bench.load.serve import Findings
from slipstream.bench.load.workload import WorkloadSettings
from slipstream.bench.machine import cores, describe_machine, load_average
from slipstream.core.errors import ConfigurationError

Progress = Callable[[str], None]
_SHOWN_FAULTS = 10


class Hit(StrEnum):
    """What is done to a verifier: it dies, it falls silent, it is told to stop."""

    kill = "kill"
    stop = "stop"
    term = "term"


@dataclass(frozen=True, slots=True)
class ReliabilitySettings:
    """What to run.

    Attributes:
        model: a model folder.
        out: where the JSON goes; logs and known answers go beside it.
        workload: asked of gateways with different stores.
        repeats: of everything, interleaved.
        users, seconds: the closed loop of `store`.
        singles: requests of it that come one after the other, for TTFT.
        placement: of verifier and drafter of `store`, as the verifier takes it.
        prompts, answer, hit_after, hits: `failover`: tokens of its prompts and of an answer, after
            how many of them what is done.
        history, chats: `second-turn`: tokens of the first prompt, and how many conversations.
        sessions, ttl: `idle-sessions`: how many, and seconds until an idle one is forgotten; more
            than it takes to make them all.
        stores: `idle-sessions`: which.

    Raises:
        ConfigurationError: a number out of its range.
    """

    model: Path
    model_name: str
    out: Path
    workload: WorkloadSettings = field(default_factory=WorkloadSettings)
    repeats: int = 3
    users: int = 4
    seconds: float = 30.0
    singles: int = 24
    placement: str = "auto"
    prompts: tuple[int, ...] = (512, 1500)
    answer: int = 256
    hit_after: int = 48
    hits: tuple[Hit, ...] = tuple(Hit)
    history: int = 1500
    chats: int = 3
    sessions: int = 10_000
    ttl: float = 600.0
    stores: tuple[str, ...] = ("redis", "sqlite")

    def __post_init__(self) -> None:
        counts = (self.repeats, self.users, self.singles, self.chats, self.history, *self.prompts)
        if min(counts) < 1 or not self.prompts or not self.seconds > 0 or not self.ttl > 0:
            raise ConfigurationError(
                "seconds and ttl must be above 0, repeats, users, singles, chats, history and"
                " prompts at least 1"
            )
        if not 2 <= self.hit_after < self.answer:
            raise ConfigurationError(
                f"--hit-after {self.hit_after} must be at least 2 and below the --answer-tokens"
                f" {self.answer}"
            )
        if self.sessions < 4:
            raise ConfigurationError("sessions must be at least 4: memory is taken at quarters")

    @property
    def logs(self) -> Path:
        return self.out.parent / f"{self.out.stem}-logs"


# Enough to see that everything runs; no figures.
QUICK: dict[str, Any] = {
    "repeats": 1,
    "seconds": 3.0,
    "singles": 3,
    "prompts": (128,),
    "answer": 64,
    "hit_after": 16,
    "history": 200,
    "chats": 1,
    "sessions": 200,
    "ttl": 20.0,
}


@dataclass(frozen=True, slots=True)
class Sheet:
    """A small table for people."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def table(self) -> Table:
        view = Table(title=self.title)
        for place, heading in enumerate(self.headings):
            view.add_column(heading, justify="right" if place else "left", no_wrap=True)
        for row in self.rows:
            view.add_row(*row)
        return view


@dataclass(frozen=True, slots=True)
class Result:
    """Of one scenario."""

    findings: Findings
    sheet: Sheet
    outcomes: Sequence[Outcome] = ()


def document(results: Sequence[Result], settings: ReliabilitySettings) -> dict[str, Any]:
    """The content of the JSON file."""
    run = asdict(settings)
    del run["model"], run["out"]
    run["workload"]["questions"] = settings.workload.questions.name
    return {
        "scenarios": {each.findings.name: _scenario(each) for each in results},
        "machine": describe_machine(len(cores())),
        "run": {**run, "model": settings.model_name, "load_average": load_average()},
    }


def _scenario(result: Result) -> dict[str, Any]:
    faults = [asdict(each) for each in result.outcomes if each.verdict in FAULTS]
    return {
        "bars": [{**asdict(bar), "met": bar.met} for bar in result.findings.bars],
        **result.findings.figures,
        "table": {"headings": result.sheet.headings, "rows": result.sheet.rows},
        "faults": faults[:_SHOWN_FAULTS],
    }
