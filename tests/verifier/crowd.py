"""A verifier under load in simulated time: the real engine, with a model that only takes time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from slipstream.core.errors import Overloaded
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.verifier.rig import VOCAB, Outcome, Rig, write_checkpoint
from verifier_service.admission import Bounds
from verifier_service.generation import Progress
from verifier_service.plan import Limits

CONTEXT = 4096
# About what two cores take for the default model: a row, 16 rows, and 512 of prompts take 16, 26
# and 370 ms.
_STEP, _ROW = 0.015, 0.0007


def step_seconds(rows: int) -> float:
    return _STEP + _ROW * rows


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request; `at` in seconds since the start of its load."""

    at: float
    prompt: int
    output: int
    tenant: str = ""
    priority: int = 0


@dataclass(slots=True)
class Visit:
    """What became of a request. Times in seconds, since it was due or, `ended`, on the clock."""

    arrival: Arrival
    outcome: Outcome | None = None
    refusal: Overloaded | None = None
    first: float | None = None
    ended: float | None = None


class Crowd:
    """Feeds arrivals to an engine while its steps pass.

    Attributes:
        now: the clock of engine, admission and speculation.
    """

    def __init__(self, folder: Path, pool_tokens: int = 90_000, **how) -> None:
        self.now = 100.0
        loaded = load_model(write_checkpoint(folder, context=CONTEXT, layers=1))
        # Two heads of keys and values, eight numbers each, in float32.
        runner = ModelRunner(loaded, kv_bytes=pool_tokens * 128)
        # A method of this object; the runner's own would compute something.
        runner.forward = self._forward  # type: ignore[method-assign, assignment]
        probe = {rows: step_seconds(rows) for rows in (1, 4, 16, 64, 256, 512)}
        how.setdefault("bounds", Bounds())
        self.rig = Rig(runner, limits=Limits(), clock=lambda: self.now, probe=probe, **how)
        self._coming: list[tuple[float, Visit]] = []
        self._draw = random.Random(0)

    def run(self, arrivals: Sequence[Arrival], until: float = float("inf")) -> list[Visit]:
        """Lets all of them come, from now on, until they have ended, or for so many seconds."""
        start = self.now
        visits = [Visit(arrival) for arrival in arrivals]
        self._coming = [(start + visit.arrival.at, visit) for visit in visits]
        engine = self.rig.engine
        while self.now < start + until:
            self._admit(self.now)
            if not engine.step() and not engine.num_running + engine.num_waiting:
                if not self._coming:
                    break
                self.now = self._coming[0][0]
            assert engine.counters.steps < 100_000, "it does not end"
        return visits

    def _forward(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Takes its time, in which others arrive; says the same token always."""
        ends = self.now + step_seconds(sum(len(each.tokens) for each in segments))
        self._admit(ends)
        self.now = ends
        logits = torch.zeros(sum(each.num_logits for each in segments), VOCAB)
        logits[:, 7] = 1.0
        return logits

    def _admit(self, until: float) -> None:
        while self._coming and self._coming[0][0] <= until:
            due, visit = self._coming.pop(0)
            self.now = max(self.now, due)
            self._submit(visit, due)

    def _submit(self, visit: Visit, due: float) -> None:
        arrival, outcome = visit.arrival, Outcome(())

        def hear(progress: Progress) -> None:
            outcome.hear(progress)
            if visit.first is None and progress.tokens:
                visit.first = self.now - due
            if outcome.ended:
                visit.ended = self.now

        prompt = tuple(self._draw.choices(range(8, VOCAB), k=arrival.prompt))
        how = {"tenant": arrival.tenant, "priority": arrival.priority}
        try:
            self.rig.submit(
                prompt, max_tokens=arrival.output, ignore_eos=True, listener=hear, **how
            )
        except Overloaded as refusal:
            visit.refusal = refusal
        else:
            visit.outcome = outcome


def chats(times: Iterable[float], seed: int = 0) -> list[Arrival]:
    """Prompts and answers as people's are: log-normal, most of a sentence, some of a page."""
    draw = random.Random(seed)

    def length(median: float, spread: float, most: int) -> int:
        return max(8, min(most, round(median * draw.lognormvariate(0.0, spread))))

    return [Arrival(at, length(180.0, 0.8, 1500), length(70.0, 0.5, 96)) for at in times]


def taken(visits: Iterable[Visit]) -> list[Visit]:
    return [visit for visit in visits if visit.refusal is None]


def first_tokens(visits: Iterable[Visit]) -> list[float]:
    """Seconds to the first token of all that were taken, in order of length."""
    return sorted(cast("float", visit.first) for visit in taken(visits))
