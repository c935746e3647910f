"""Generations that nobody waits for: begun here, or by a gateway that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass, replace

from gateway.request import GenerationRequest
from gateway.runs import failure as failures
from gateway.runs.log import Known
from gateway.runs.record import Asked, Record, choices_of, request_of
from gateway.runs.records import BACKGROUND, FREE, Records
from gateway.runs.run import Run
from gateway.runs.service import Runs
from gateway.runs.standing import standing_of
from slipstream.core.errors import (
    Draining,
    Overloaded,
    SlipstreamError,
    StoreUnavailable,
    Unavailable,
)
from slipstream.store import Fenced, VersionConflict

log = logging.getLogger(__name__)
SWEEP_SECONDS = 2.0
# Without a sign of life for so long, a run has no gateway any more.
ORPHAN_SECONDS = 5.0
_PAGE = 100
_TRIES = 4
_STORED_SECONDS = 5.0
_FIRST_WAIT_SECONDS, _LAST_WAIT_SECONDS = 0.5, 15.0
_RETRY_AFTER_SECONDS = 5.0
# In the verifier's queue they come behind what somebody waits for; lower ones go first.
PRIORITY = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """Of background runs.

    Attributes:
        most: at once in this gateway; more are refused, and none is adopted. They hold no place
            among the requests that clients wait for, nor do these hold one among them.
        most_per_key: of them, for one API key; 0 for no bound of its own.
        seconds: since it was asked for until one that cannot be served has failed.
    """

    most: int = 256
    most_per_key: int = 0
    seconds: float = 3600.0


class _LetGo(Exception):
    """No verifier here can go on with it; another gateway's may."""


class Background:
    """One for the process. `start` begins to look for orphans, `close` lets go of all runs.

    Args:
        runs: where generations are kept.
        limits: how many of them, for how long.
    """

    def __init__(self, runs: Runs, limits: Limits | None = None) -> None:
        self._runs = runs
        self._limits = limits or Limits()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._held: Counter[str] = Counter()
        self._sweeper: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def running(self) -> int:
        return len(self._tasks)

    def start(self) -> None:
        if self._runs.keeps:
            self._sweeper = asyncio.create_task(self._sweep_on(), name="background-sweep")

    async def close(self) -> None:
        """Lets go of all runs, so that other gateways, or the next one here, adopt them."""
        self._closing = True
        tasks = [*self._tasks.values()]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def begin(self, request: GenerationRequest, asked: Asked) -> str:
        """Starts it, or finds the one that the idempotency key stands for; its id.

        Raises:
            Overloaded: as many run here as may.
            TooManyGenerations: as many are kept of its owner's as may be.
            Draining: this gateway stops.
            InvalidRequest: such a request cannot be served.
            StoreUnavailable: it cannot be kept.
        """
        if self._closing:
            raise Draining("the gateway is about to stop; try another one")
        self._check_room(asked.owner)
        # From here on it holds its place.
        self._held[asked.owner] += 1
        try:
            for _ in range(_TRIES):
                try:
                    run, known = await self._runs.enter(request, asked, alone=True)
                except VersionConflict:
                    found = await self.found(asked)
                    if found:
                        return found
                else:
                    await self._list(run.record)
                    self._take_up(run, known)
                    return run.id
            raise StoreUnavailable("the idempotency key is used by others all the time; try again")
        finally:
            self._left(asked.owner)

    async def found(self, asked: Asked) -> str:
        """The id of the one that the idempotency key stands for; empty: none. Raises as `begin`."""
        record = await self._runs.claimed(asked)
        if record is None:
            return ""
        # Its gateway may have gone before it was listed. One that has ended is taken out again.
        await self._list(record)
        return record.request_id

    async def _list(self, record: Record) -> None:
        records = self._runs.keeper.records
        ttl = records.times.record(record)
        await records.store.index_add(BACKGROUND, record.request_id, ttl=ttl)

    def _check_room(self, owner: str) -> None:
        limits = self._limits
        of_key = self._held[owner]
        total = sum(self._held.values())
        if total >= limits.most or (
            owner and limits.most_per_key and of_key >= limits.most_per_key
        ):
            raise Overloaded(
                f"{total} requests run in the background here, {of_key} of them with this API key;"
                " no more are taken now",
                retry_after=_RETRY_AFTER_SECONDS,
            )

    def _left(self, owner: str) -> None:
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]

    def _take_up(self, run: Run, known: list[Known]) -> None:
        self._held[run.record.owner] += 1
        run.open(known)
        self._runs.keeper.active.add(run)
        task = asyncio.create_task(self._run(run), name=f"background-{run.id}")
        self._tasks[run.id] = task
        task.add_done_callback(lambda _: self._ended(run))

    def _ended(self, run: Run) -> None:
        self._tasks.pop(run.id, None)
        self._runs.keeper.active.discard(run)
        self._left(run.record.owner)

    async def _run(self, run: Run) -> None:
        records, free = self._runs.keeper.records, False
        try:
            failure = await self._until_done(run)
            if run.aborted is not None:
                # Somebody else has it, or nobody wants it, or it will be adopted.
                return
            if failure is not None:
                await self._fail(run, failure)
            elif await run.stored(_STORED_SECONDS):
                await records.left(run.id)
            # Else it is still listed: whoever finds it computes again what the log lacks.
        except _LetGo:
            log.info("%s: left to whoever has a verifier for it", run.id)
            free = True
        except StoreUnavailable as failure:
            log.warning("%s: its end is not stored: %s", run.id, failure)
        finally:
            run.release()
            if (self._closing or free) and run.aborted is None:
                with contextlib.suppress(StoreUnavailable):
                    await records.store.index_add(FREE, run.id, ttl=records.times.log(run.record))

    async def _until_done(self, run: Run) -> SlipstreamError | None:
        """Why it failed; None where it did not. Raises _LetGo."""
        wait = _FIRST_WAIT_SECONDS
        give_up = run.record.created_unix + self._limits.seconds
        pasts = run.pasts()
        while True:
            heard = run.heard
            source = self._runs.keeper.generate(
                request_of(run.record), run.course(pasts), run.record
            )
            try:
                async with contextlib.aclosing(run.pieces(source)) as pieces:
                    async for _ in pieces:
                        pass
            except SlipstreamError as failure:
                if run.heard > heard:
                    wait = _FIRST_WAIT_SECONDS
                pause = max(wait, failure.retry_after or 0.0) * random.uniform(0.75, 1.25)
                late = time.time() + pause > give_up
                if run.aborted is not None or late or not failures.may_pass(failure):
                    return failure
                if not self._runs.serves(run.record):
                    raise _LetGo from failure
                log.info("%s: tries again in %.1f s: %s", run.id, pause, failure)
                try:
                    await run.pause(pause)
                except SlipstreamError as aborted:
                    return aborted
                wait = min(2 * wait, _LAST_WAIT_SECONDS)
            else:
                return None
            pasts = run.pasts()

    async def _fail(self, run: Run, failure: SlipstreamError) -> None:
        log.warning("%s: failed in the background: %s", run.id, failure)
        await self._runs.keeper.fail(run, failure)
        await self._runs.keeper.records.left(run.id)

    # Orphans.

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.75, 1.25))
            try:
                await self.sweep()
            except StoreUnavailable as failure:
                log.debug("no sweep: %s", failure)
            except Exception:
                # The last line of defence: one damaged record must not orphan all others.
                log.exception("unexpected failure in the sweep for background runs")

    async def sweep(self) -> None:
        """Adopts runs that have no gateway, as far as there is room. Raises StoreUnavailable."""
        records = self._runs.keeper.records
        for index in (FREE, BACKGROUND):
            after = ""
            while True:
                names = await records.store.index_list(index, after, _PAGE)
                for name in names:
                    if name not in self._tasks:
                        await self._adopt(records, name, free=index == FREE)
                if len(names) < _PAGE:
                    break
                after = names[-1]

    async def _adopt(self, records: Records, name: str, *, free: bool) -> None:
        if not free and await records.beats(name) < ORPHAN_SECONDS:
            return
        record = await records.get(name)
        if record is None or await records.failure(name) is not None:
            await records.left(name)
            return
        logs = await records.logs(record, dict.fromkeys(range(choices_of(record)), 0))
        running = [found for found in logs.values() if found is None or not found.ended]
        if not running:
            # Its gateway may have gone before the turn of a session was stored.
            await standing_of(self._runs.keeper, record)
            await records.left(name)
            return
        if not self._runs.serves(record):
            if time.time() > record.created_unix + self._limits.seconds:
                await records.fail(record, Unavailable("no verifier could go on with it in time"))
                await records.left(name)
            return
        if any(f is not None and f.age < ORPHAN_SECONDS and not f.released for f in running):
            return
        try:
            self._check_room(record.owner)
            known = await records.take(record, logs, wins=False)
        except (Fenced, Overloaded):
            return
        await records.store.index_remove(FREE, name)
        self._runs.resumed["adopted"] += 1
        log.info("%s: adopted, with %d tokens", name, sum(found.length for found in known))
        self._take_up(self._runs.keeper.run(record, alone=True), known)


def behind_others(request: GenerationRequest) -> GenerationRequest:
    """The request with the priority of those that nobody waits for."""
    return replace(request, terms=replace(request.terms, priority=PRIORITY))
