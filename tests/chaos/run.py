"""One run: a stack, the truth, a storm with clients in it, and what is left afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from gateway.tokenizer import Tokenizer
from slipstream.core.errors import SlipstreamError
from tests.chaos.aftermath import held, sessions_kept, still_held
from tests.chaos.asks import WAYS
from tests.chaos.counters import counting
from tests.chaos.crowd import PATIENCE, Crowd, crowd
from tests.chaos.history import StoreHistory
from tests.chaos.report import Report
from tests.chaos.schedule import KINDS, ROLES, schedule
from tests.chaos.stack import MODEL, Options, Stack, running_stack
from tests.chaos.storm import Storm
from tests.chaos.topology import Topology
from tests.chaos.truth import Known, resolved, truths
from tests.chaos.workload import Workload, workload
from tests.tiny_model import write_tiny_model

_CONTEXT = 4096
# A step of so many layers takes some milliseconds: an answer lasts long enough to be hit.
_LAYERS = 6
_TOPOLOGY = Topology()


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """What a run is made of.

    Attributes:
        generations: at least so many, turns of sessions included.
        at_once: clients.
        tokens: least and most of an answer.
        ways: how clients ask.
        kinds, roles: of faults, and of what they hit.
        every: mean seconds between two faults.
        resumption: whether gateways resume generations, and fail over.
        stop_at_fault: the first answer that is not right ends the run.
        logs: where to keep the processes' logs; None: not after the run.
    """

    topology: Topology = _TOPOLOGY
    generations: int = 300
    at_once: int = 12
    seed: int = 0
    tokens: tuple[int, int] = (100, 400)
    ways: Collection[str] = WAYS
    kinds: Collection[str] = KINDS
    roles: Collection[str] = ROLES
    every: float = 2.0
    resumption: bool = True
    stop_at_fault: bool = False
    patience: float = PATIENCE
    logs: Path | None = None


async def chaos(settings: ChaosSettings, say: Callable[[str], None]) -> Report:
    """Raises SlipstreamError where the undisturbed stack does not work."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        folder = Path(place)
        say("starting a stack")
        model = await asyncio.to_thread(
            write_tiny_model, folder / "model", layers=_LAYERS, context=_CONTEXT
        )
        logs = settings.logs or folder / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        options = Options(model, folder, logs, settings.resumption)
        async with running_stack(settings.topology, options, settings.seed) as stack:
            return await _on(stack, settings, say)


async def _on(stack: Stack, settings: ChaosSettings, say: Callable[[str], None]) -> Report:
    asked = workload(
        settings.seed, settings.generations, tokens=settings.tokens, ways=settings.ways
    )
    say(f"asking {len(asked.asks)} questions and {len(asked.dialogues)} dialogues undisturbed")
    known = await _truths(stack, asked)
    before = await held(stack)
    asked, report = resolved(asked, known), Report(settings.seed)
    clock = asyncio.get_running_loop().time
    history = StoreHistory()
    storm = Storm(stack, history, say)
    faults = schedule(
        settings.seed,
        settings.topology,
        kinds=settings.kinds,
        roles=settings.roles,
        every=settings.every,
    )
    doors = [stack.addresses[name] for name in stack.topology.of("gateway")]
    say(f"{asked.generations} generations, {settings.at_once} at once, in a storm:")
    began = clock()
    clients = crowd(stack.gateways, known, history, MODEL, settings.seed, settings.patience, say)
    async with clients as folk, counting(doors) as counters, _calm_after(storm, stack, say):
        async with storm.blowing(faults):
            await _work(folk, asked, settings)
            storm.abandoned = settings.stop_at_fault and folk.fault.is_set()
        report.seconds = clock() - began
    report.struck, report.outcomes, report.sessions = storm.struck, folk.outcomes, folk.sessions
    report.unstored, report.counters = folk.unstored, counters.totals
    report.lives = {name: process.lives for name, process in stack.processes.items()}
    if not storm.abandoned:
        report.sessions_kept = await sessions_kept(stack, folk.sessions, history)
        report.held = await still_held(stack, before)
    report.wrong_processes = [*storm.failures, *stack.complaints()]
    return report


@contextlib.asynccontextmanager
async def _calm_after(
    storm: Storm, stack: Stack, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """After the block, waits until everybody is well again; who does not get there is noted."""
    yield
    if storm.abandoned:
        return
    say("the storm is over; waiting until all are well")
    try:
        await stack.wait_ready()
    except SlipstreamError as failure:
        storm.failures.append(failure.message)


async def _truths(stack: Stack, asked: Workload) -> dict[str, Known]:
    tokenizer = Tokenizer(stack.options.model)
    door = stack.grpc[stack.topology.of("gateway")[0]]
    return await truths(door, asked, lambda i: tokenizer.token_bytes(i).decode(errors="replace"))


async def _work(folk: Crowd, asked: Workload, settings: ChaosSettings) -> None:
    """Until all jobs are done or, where that is wanted, one answer is not right."""
    work = asyncio.create_task(folk.work(asked.jobs, settings.at_once))
    waits = {work}
    if settings.stop_at_fault:
        waits.add(asyncio.create_task(folk.fault.wait()))  # type: ignore[arg-type]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
