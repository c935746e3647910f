"""The clients: so many at a time do their jobs, and every answer is judged as it comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx

from slipstream.wire.transport import channel
from tests.chaos.answers import Answer
from tests.chaos.asks import Ask
from tests.chaos.grpc_client import GrpcClient
from tests.chaos.history import StoreHistory
from tests.chaos.http_client import HttpClient, http_client
from tests.chaos.session_client import SessionLog, play
from tests.chaos.tries import Gateway, Tries
from tests.chaos.truth import Known
from tests.chaos.verdict import Finding, Verdict, judge
from tests.chaos.workload import Dialogue, Job

# Of one generation. A failover may take 30 s, and another one may follow.
PATIENCE = 150.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One generation, done with."""

    name: str
    way: str
    finding: Finding
    answer: Answer


@dataclass(slots=True)
class Crowd:
    """All clients of a storm, and what came of them.

    Attributes:
        known: asks and turns with their answers, by name.
        seed: of what clients leave to chance.
        outcomes: of generations, in the order they ended.
        sessions: that dialogues took, also those that the store forgot.
        unstored: answers to turns that said that they are not in the store.
        fault: set as soon as an answer is not right; `say` is told what it is.
    """

    gateways: Sequence[Gateway]
    known: Mapping[str, Known]
    history: StoreHistory
    model: str
    seed: int
    web: httpx.AsyncClient
    channels: Mapping[str, grpc.aio.Channel]
    patience: float
    say: Callable[[str], None]
    outcomes: list[Outcome] = field(default_factory=list)
    sessions: list[SessionLog] = field(default_factory=list)
    unstored: int = 0
    fault: asyncio.Event = field(default_factory=asyncio.Event)

    async def work(self, jobs: Sequence[Job], at_once: int) -> None:
        """Does all jobs, so many at a time."""
        waiting = iter(jobs)

        async def client() -> None:
            for job in waiting:
                await self._do(job)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(client())

    async def _do(self, job: Job) -> None:
        draw = random.Random(f"client/{self.seed}/{job.name}")
        tries = Tries(self.gateways, draw, self.history, self.patience)
        web = HttpClient(self.web, self.model, tries)
        rpc = GrpcClient(self.channels, tries)

        async def ask(ask: Ask, key: str, extra: dict[str, Any]) -> Answer:
            if job.way == "grpc":
                return await rpc.ask(ask, key, extra)
            return await web.ask(ask, job.way, key, extra)

        key = f"{self.seed}/{job.name}"
        if isinstance(job.work, Ask):
            answer = await ask(job.work, key, {})
            self._note(job.name, job.way, answer, job.work.name)
        else:
            await self._converse(job, job.work, tries, ask)

    async def _converse(self, job: Job, dialogue: Dialogue, tries: Tries, ask: Any) -> None:
        played = await play(dialogue, f"{self.seed}-{dialogue.name}", tries, ask)
        self.sessions += played.sessions
        self.unstored += played.unstored
        way, right = f"session, {job.way}", True
        for turn, answer in played.answers:
            name = dialogue.turns[turn].name
            right = self._note(name, way, answer, name) and right
        if played.failure and right:
            # No single answer is wrong, and the conversation could not be held all the same.
            last = played.answers[-1][1] if played.answers else Answer()
            self._add(Outcome(dialogue.name, way, Finding(Verdict.LOST, played.failure), last))

    def _note(self, name: str, way: str, answer: Answer, known: str) -> bool:
        """Judges an answer; whether it is right."""
        return self._add(Outcome(name, way, judge(answer, self.known[known].truth), answer))

    def _add(self, outcome: Outcome) -> bool:
        self.outcomes.append(outcome)
        finding = outcome.finding
        if finding.verdict is Verdict.RIGHT:
            return True
        self.say(f"{outcome.name} ({outcome.way}): {finding.verdict}: {finding.detail}")
        self.fault.set()
        return False


@asynccontextmanager
async def crowd(
    gateways: Sequence[Gateway],
    known: Mapping[str, Known],
    history: StoreHistory,
    model: str,
    seed: int,
    patience: float,
    say: Callable[[str], None],
) -> AsyncIterator[Crowd]:
    """Clients with connections of their own, which end with the context."""
    async with AsyncExitStack() as exits:
        web = await exits.enter_async_context(http_client())
        channels = {
            gateway.grpc: await exits.enter_async_context(channel(gateway.grpc))
            for gateway in gateways
        }
        yield Crowd(gateways, known, history, model, seed, web, channels, patience, say)
