"""Runs of this process, from their first message to their last: what is journalled and taken over,
and what becomes of one that fails, is taken over, deleted or left by its client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, Protocol

from gateway.continuation import Piece
from gateway.course import Course
from gateway.generation import GenerationService
from gateway.request import GenerationRequest
from gateway.runs import failure as failures
from gateway.runs.cursor import Cursor
from gateway.runs.follower import Follower
from gateway.runs.journal import Journal
from gateway.runs.log import Known
from gateway.runs.options import Options
from gateway.runs.record import Pieces, Record, choices_of
from gateway.runs.records import Records, Times
from gateway.runs.run import Run
from gateway.verifiers.served import ServedModel
from slipstream.core.errors import (
    Cancelled,
    ModelMismatch,
    SessionConflict,
    SlipstreamError,
    StoreUnavailable,
    StreamUnread,
    TooManyGenerations,
    Unavailable,
)
from slipstream.store import Fenced, Store

log = logging.getLogger(__name__)
# A request that is refused at once is not worth a record.
_HEAD_START_SECONDS = 0.002
Generate = Callable[[GenerationRequest, Course], Pieces]
GenerateKept = Callable[[GenerationRequest, Course, Record], Pieces]


class Turns(Protocol):
    """What sessions have to do with kept generations."""

    def around(self, run: Generate) -> GenerateKept:
        """`run`, for requests that have a record, and with it the turn that they become."""

    async def settled(self, record: Record, request: GenerationRequest, piece: Piece) -> Piece:
        """The last piece of a generation that had ended already, with what became of its turn."""


class Keeper:
    """One for the process. `start` begins to write logs, `close` ends it.

    Args:
        service: runs requests.
        store: where they are kept.
        options: how.
        turns: of sessions.

    Attributes:
        records: what is kept.
        active: runs of this process.
    """

    def __init__(
        self,
        service: GenerationService,
        store: Store,
        options: Options,
        turns: Turns | None = None,
    ) -> None:
        times = Times(options.log_ttl, options.background_ttl)
        self.records: Final = Records(store, times, options.most_per_key)
        self.active: set[Run] = set()
        self._turns = turns
        self._service = service
        self._options = options
        self._journal = Journal(store, options.bounds)
        self._model: ServedModel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        service.metrics.journal = self._journal

    def start(self) -> None:
        self._journal.start()
        self._renewing = asyncio.create_task(self._renew(), name="record-renewal")

    async def close(self, grace: float) -> None:
        """Lets go of all logs, for at most `grace` seconds."""
        if self._renewing is not None:
            self._renewing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._journal.close(grace)

    def run(self, record: Record, key: str = "", *, alone: bool = False) -> Run:
        """One of a record; `alone` where nobody waits for it."""
        ttl = self.records.times.log(record)
        return Run(record, self._journal, ttl, self._lost, key=key, alone=alone)

    def generate(self, request: GenerationRequest, course: Course, record: Record) -> Pieces:
        """The pieces of a request that was begun before, or that nobody waits for."""
        if self._turns is None:
            return self._service.run(request, course)
        return self._turns.around(self._service.run)(request, course, record)

    async def streamed(self, run: Run, source: Pieces, opened: asyncio.Future[bool]) -> Pieces:
        """A new stream; its record is put while it waits for its first token."""
        opening = asyncio.create_task(self._open(run, opened))
        try:
            async with contextlib.aclosing(self.attached(run, source, fresh=True)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            opening.cancel()

    async def _open(self, run: Run, opened: asyncio.Future[bool]) -> None:
        kept = added = False
        try:
            await asyncio.sleep(_HEAD_START_SECONDS)
            async with asyncio.timeout(self._options.patience):
                await self.records.add(run.record)
                added = True
                run.open(await self.records.open(run.record))
            kept = run.aborted is None
        except StoreUnavailable as failure:
            # The store's own guard has said so; every stream would.
            log.debug("%s: cannot be resumed: %s", run.id, failure)
        except TooManyGenerations as failure:
            # Counted, and told to the client by the answer's header.
            self._service.metrics.unkept += 1
            log.debug("%s: cannot be resumed: %s", run.id, failure)
        except (Fenced, TimeoutError) as failure:
            log.warning("%s: cannot be resumed: %r", run.id, failure)
        finally:
            if not kept:
                run.forget()
            if added and not kept:
                self._spawn(self._forget(run.record))
            if not opened.done():
                opened.set_result(kept)

    async def attached(
        self, run: Run, source: Pieces, known: list[Known] | None = None, *, fresh: bool = False
    ) -> Pieces:
        """The pieces of a run that ends with its client."""
        if known is not None:
            run.open(known)
        self.active.add(run)
        try:
            async with contextlib.aclosing(run.pieces(source)) as pieces:
                async for piece in pieces:
                    yield piece
        except SlipstreamError as failure:
            await self._failed(run, failure, fresh=fresh)
            raise
        finally:
            run.release()
            self.active.discard(run)

    async def _failed(self, run: Run, failure: SlipstreamError, *, fresh: bool) -> None:
        """What is kept of a run that failed: where another try may go on from it, everything."""
        if run.aborted is not None or run.fenced or isinstance(failure, StreamUnread):
            return
        if isinstance(failure, SessionConflict) and run.heard:
            # Maybe by another run of this very request; whoever tries again finds out.
            return
        nothing = fresh and not run.heard
        hopeless = not failures.may_pass(failure)
        with contextlib.suppress(StoreUnavailable):
            if run.key and (nothing or hopeless):
                run.forget()
                await self.fail(run, failure)
        if nothing and run.opened:
            run.forget()
            self._spawn(self._forget(run.record))

    async def _forget(self, record: Record) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self.records.forget(record)

    async def fail(self, run: Run, failure: SlipstreamError) -> None:
        """Tells those who wait for it, and leaves its key to another try."""
        await self.records.fail(run.record, failure)
        if run.key:
            await self.records.unclaim(run.record.owner, run.key, run.id)

    def follower(
        self, record: Record, request: GenerationRequest, cursor: Cursor | None = None
    ) -> Follower:
        """Raises Unavailable: no verifier has told its model yet. ModelMismatch: it is of another
        one, whose tokens mean something else."""
        model = self.served()
        # What tokens mean depends on nothing else in the key of its verifiers.
        if record.model_key.partition("/")[0] != model.fingerprint:
            raise ModelMismatch(
                f"the generation '{record.request_id}' is of another model than this gateway serves"
            )
        fresh = [
            self._service.continuation(index, request, model) for index in range(choices_of(record))
        ]
        return Follower(self.records, record, fresh, cursor.counts if cursor else ())

    def served(self) -> ServedModel:
        """The model, also while no verifier is there: what was decided can be read without one."""
        try:
            self._model = self._service.model()
        except Unavailable:
            if self._model is None:
                raise
        return self._model

    async def joined(
        self,
        record: Record,
        request: GenerationRequest,
        key: str,
        cursor: Cursor | None,
        *,
        wins: bool,
    ) -> Pieces:
        """What comes behind the cursor: from the log, and where nobody goes on with that, or the
        caller takes it from whoever does, from a verifier."""
        follower = self.follower(record, request, cursor)
        known: list[Known] | None = None
        try:
            while known is None:
                followed = follower.now() if wins else follower.pieces()
                async with contextlib.aclosing(followed) as pieces:
                    async for piece in pieces:
                        yield await self.told(piece, record, request)
                if follower.over:
                    return
                await self._still_there(record)
                with contextlib.suppress(Fenced):
                    known = await self.records.take(record, follower.known, wins=wins)
        except StoreUnavailable as failure:
            # The tokens are the same without it.
            log.warning("%s: goes on without the store: %s", record.request_id, failure)
        run = self.run(record, key)
        pasts = follower.pasts()
        if known is None:
            run.forget()
        else:
            pasts = [replace(p, messages=k.messages) for p, k in zip(pasts, known, strict=True)]
        source = self.generate(request, run.course(pasts), record)
        async with contextlib.aclosing(self.attached(run, source, known)) as pieces:
            async for piece in pieces:
                if piece.index not in follower.ended:
                    yield piece

    async def told(self, piece: Piece, record: Record, request: GenerationRequest) -> Piece:
        """A piece from a log: the last one of a session's turn says whether that is stored."""
        if piece.finish_reason is None or self._turns is None:
            return piece
        return await self._turns.settled(record, request, piece)

    async def _still_there(self, record: Record) -> None:
        if await self.records.was_deleted(record.request_id):
            raise Cancelled(f"the generation '{record.request_id}' was deleted")

    def _lost(self, run: Run, reason: str) -> None:
        """A run's logs cannot be written any more."""
        if reason == "fenced":
            # Somebody else goes on with it, and its own client has not asked for that.
            if run.alone:
                run.abort(Cancelled(f"the generation '{run.id}' is run elsewhere"))
            return
        self._spawn(self._look_after(run))

    async def _look_after(self, run: Run) -> None:
        """Ends a run whose client deleted it. One that the store lost goes on for its client."""
        deleted = False
        with contextlib.suppress(StoreUnavailable):
            deleted = await self.records.was_deleted(run.id)
        if deleted or run.alone:
            run.abort(Cancelled(f"the generation '{run.id}' was deleted, or lost by the store"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _renew(self) -> None:
        """Records outlive their logs, however long these grow."""
        while True:
            await asyncio.sleep(min(self._options.log_ttl, self._options.background_ttl) / 8)
            for run in list(self.active):
                if time.monotonic() - run.renewed < self.records.times.log(run.record) / 2:
                    continue
                with contextlib.suppress(StoreUnavailable):
                    await self.records.renew(run.id, run.key)
                    run.renewed = time.monotonic()
