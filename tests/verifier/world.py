"""A simulated machine: a verifier's steps and a drafter's drafts in simulated time.

The policy is the real one; only the model, the drafter and the clock are made up, so that what it
reaches can be compared with what could be reached.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

from slipstream.core.draft import Close, Command, Commit, Open, Proposal, SetPace, SetWindow
from slipstream.core.params import SamplingParams, StopConditions
from slipstream.core.prefix import PrefixChain
from slipstream.engine.kv_pool import BlockTable
from verifier_service.generation import Generation, GenerationRequest
from verifier_service.layouts import Drafter
from verifier_service.placement import Placement
from verifier_service.plan import Limits, Turn, Work, plan_step
from verifier_service.speculation import Speculation, SpeculationSettings

RIGHT, WRONG = 7, 8
_LIMITS = Limits()


@dataclass(slots=True)
class Machine:
    """How long things take, in seconds, and how good the drafts are.

    Attributes:
        step: of the verifier, by rows.
        alone, beside: from draft to draft, while the verifier waits and while it computes.
        accepted: probability that a draft is right, by the number of tokens generated so far.
        slowdown: of a verifier's step while the drafter works beside it.
        latency: of a message, either way.
        context: what the first draft of a sequence takes longer than others, the verifier waiting.
    """

    step: Callable[[int], float]
    alone: float
    beside: float
    accepted: Callable[[int], float]
    slowdown: float = 1.0
    latency: float = 0.0005
    context: float = 0.0


@dataclass(slots=True)
class _Drafter:
    """One sequence on the drafter."""

    number: int
    accepted: Callable[[int], float]
    rng: random.Random
    tokens: list[int] = field(default_factory=list)
    committed: int = 0
    window: int = 0
    burst: bool = False
    proposed: int = 0
    chain: PrefixChain = field(default_factory=lambda: PrefixChain(""))
    progress: float = 0.0  # share of the next draft that is done

    def obey(self, command: Command) -> None:
        if isinstance(command, Open):
            self.tokens = list(command.tokens)
            self.chain = PrefixChain("", self.tokens)
            self.committed = self.proposed = len(self.tokens)
            self.window = command.window
        elif isinstance(command, Commit):
            start, new = command.prefix.length, list(command.tokens)
            if self.tokens[start : start + len(new)] != new:
                self.tokens[start:] = new
                self.chain.truncate(start)
                self.chain.extend(new)
                self.progress = min(self.progress, 0.0)
            self.committed = start + len(new)
            self.proposed = max(min(self.proposed, len(self.tokens)), self.committed)
        elif isinstance(command, SetWindow):
            self.window = command.window
        elif isinstance(command, SetPace):
            self.burst = command.burst
        else:
            assert isinstance(command, Close)

    @property
    def room(self) -> int:
        return max(0, self.window - (len(self.tokens) - self.committed))

    def draft(self) -> Proposal | None:
        chance = self.accepted(len(self.tokens))
        self.tokens.append(RIGHT if self.rng.random() < chance else WRONG)
        self.chain.extend(self.tokens[-1:])
        if self.burst and self.room:
            return None
        start = self.proposed
        self.proposed = len(self.tokens)
        name, tokens = self.chain.at(start), tuple(self.tokens[start:])
        return Proposal(self.number, name, tokens, not self.room, self.committed)


class World:
    """Sequences decoded with drafts, in simulated time. The right token is always RIGHT.

    Args:
        accepted: of each sequence, the probability that a draft is right; the machine's for one
            sequence if not given.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        placement: str = "separate",
        length: int | None = None,
        window: int | None = None,
        seed: int = 0,
        accepted: Sequence[Callable[[int], float]] = (),
    ) -> None:
        self.now = 100.0
        self.machine = machine
        self.steps: list[tuple[int, int]] = []  # drafts and tokens of each step
        self.drafter_busy = 0.0
        self._drafters = {
            number: _Drafter(
                number,
                each,
                random.Random(seed + number - 1),
                progress=-machine.context / machine.alone,
            )
            for number, each in enumerate(accepted or (machine.accepted,), start=1)
        }
        self._inbox: list[tuple[Proposal, float]] | None = None
        self._on_way: list[tuple[float, Command | Proposal]] = []
        probe = {n: machine.step(n) for n in (1, 2, 4, 8, 16, 32)}
        host = Drafter("here", frozenset())
        self.speculation = Speculation(
            self._send,
            SpeculationSettings(window, length, "off"),
            probe,
            Placement(placement, host, lambda _: None),
            clock=lambda: self.now,
        )
        self.generations = {number: _generation(number) for number in self._drafters}
        self.generation = self.generations[1]
        elsewhere = Drafter("elsewhere", frozenset())
        self.speculation.connect(1, elsewhere, self.generations.values())

    def run(self, tokens: int) -> float:
        """Decodes so many tokens, of all sequences together. Returns tokens per second."""
        started, before = self.now, self.generated
        while self.generated - before < tokens:
            self._one()
        return (self.generated - before) / (self.now - started)

    @property
    def generated(self) -> int:
        return sum(len(each.sequence) for each in self.generations.values())

    def _send(self, connection: int, commands: list[Command]) -> None:
        self._on_way += [(self.now + self.machine.latency, command) for command in commands]

    def _take(self, proposal: Proposal, at: float) -> None:
        if self._inbox is not None:
            self._inbox.append((proposal, at))
            return
        self.speculation.take(1, [proposal], [], self.generations, 100, at, self.machine.alone)

    def _pass(self, until: float, *, stepping: bool) -> None:
        """Lets time pass; the drafter works meanwhile. Ends early where a proposal arrives."""
        each = self.machine.beside if stepping else self.machine.alone
        while self.now < until:
            self._on_way.sort(key=lambda item: item[0])
            following = self._on_way[0][0] if self._on_way else until
            busy = [drafter for drafter in self._drafters.values() if drafter.room]
            done = [self.now + (1.0 - drafter.progress) * each for drafter in busy]
            end = min(until, max(following, self.now), *done)
            self.drafter_busy += (end - self.now) * bool(busy)
            for drafter in busy:
                drafter.progress += (end - self.now) / each
            self.now = end
            for drafter in busy:
                if drafter.progress > 1.0 - 1e-9:
                    drafter.progress = 0.0
                    proposal = drafter.draft()
                    if proposal:
                        self._on_way.append((self.now + self.machine.latency, proposal))
            arrived = [item for at, item in self._on_way if at <= self.now]
            self._on_way = [entry for entry in self._on_way if entry[0] > self.now]
            for item in arrived:
                if isinstance(item, Proposal):
                    self._take(item, self.now)
                elif isinstance(item, SetPace):
                    for drafter in self._drafters.values():
                        drafter.obey(item)
                else:
                    self._drafters[item.sequence_id].obey(item)
            if any(isinstance(item, Proposal) for item in arrived) and not stepping:
                return

    def _one(self) -> None:
        speculation = self.speculation
        turn = Turn(tuple(self.generations.values()))
        patience = speculation.patience(turn)
        speculation.flush()
        if patience:
            self._pass(self.now + patience, stepping=False)
            return
        work = plan_step(turn, _LIMITS, speculation.share, lambda *_: 0).work
        seconds = self.machine.step(sum(len(item.segment.tokens) for item in work))
        if any(drafter.room and not drafter.burst for drafter in self._drafters.values()):
            seconds *= self.machine.slowdown
        # What arrives during a step is read after it, as by the engine's inbox.
        self._inbox = []
        self._pass(self.now + seconds, stepping=True)
        late, self._inbox = self._inbox, None
        before = self.generated
        for item in work:
            self._decide(item)
        speculation.stepped(work, self.generated - before)
        speculation.flush()
        self.steps.append((sum(len(item.drafts) for item in work), self.generated - before))
        for proposal, at in late or []:
            self._take(proposal, at)

    def _decide(self, work: Work) -> None:
        generation, accepted = work.generation, 0
        for draft in work.drafts:
            if draft != RIGHT:
                break
            accepted += 1
        for _ in range(accepted + 1):
            generation.append(RIGHT)
        generation.sequence.computed = len(generation.sequence) - 1
        generation.settle(accepted + 1)
        self.speculation.verified(generation)
        self.speculation.committed(generation, accepted + 1)


def _generation(number: int) -> Generation:
    request = GenerationRequest(
        "r", (1, 2, 3), SamplingParams(0.0), StopConditions(10**6), True, None, lambda _: None
    )
    generation = Generation(number, request, "", frozenset(), 10**6)
    generation.sequence.table = cast("BlockTable", SimpleNamespace(capacity=10**6))
    generation.sequence.computed = 2
    return generation
