"""Generations that are kept: begun, joined, resumed, looked at, deleted. What both doors use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gateway.continuation import Piece
from gateway.course import Course
from gateway.generation import GenerationService
from gateway.request import GenerationRequest
from gateway.runs import failure as failures
from gateway.runs.answer import Answer, plain
from gateway.runs.cursor import Cursor, parse_cursor, split_event_id
from gateway.runs.follower import Follower
from gateway.runs.journal import Bounds, Journal
from gateway.runs.log import Known
from gateway.runs.record import Asked, Record, choices_of, record_of, request_of
from gateway.runs.records import Records, Times
from gateway.runs.run import Run
from gateway.verifier import ServedModel
from slipstream.core.errors import (
    Cancelled,
    IdempotencyConflict,
    InvalidParameter,
    SlipstreamError,
    StoreUnavailable,
    StreamUnread,
    Unavailable,
)
from slipstream.store import Fenced, Store, VersionConflict

log = logging.getLogger(__name__)
# A request that is refused at once is not worth a record.
_HEAD_START_SECONDS = 0.002
_TRIES = 4
Way = Literal["event_id", "idempotency", "adopted"]
Pieces = AsyncGenerator[Piece, None]


@dataclass(frozen=True, slots=True)
class Options:
    """How generations are kept.

    Attributes:
        resume: whether streams are, without an idempotency key.
        log_ttl, background_ttl: seconds after the last entry of a log.
        patience: seconds that a stream's first event waits for the store.
        bounds: of what waits to be written.
    """

    resume: bool = True
    log_ttl: float = 600.0
    background_ttl: float = 3600.0
    patience: float = 0.25
    bounds: Bounds | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a generation has come.

    Attributes:
        state: "interrupted" where nobody runs it, and somebody who asks for the rest must.
        pieces: what there is.
        failure: why it failed.
    """

    record: Record
    request: GenerationRequest
    state: Literal["in_progress", "completed", "failed", "interrupted"]
    pieces: tuple[Piece, ...]
    failure: SlipstreamError | None


class Runs:
    """One for the process. `start` begins to write logs, `close` ends it.

    Args:
        service: runs requests.
        store: where they are kept; None: nothing is.
        options: how.

    Attributes:
        generate: runs a request: the service's `run`, or something around it that wants to know the
            record, where there is one.
        resumed: generations that went on from their logs, by the way that led to it.
        active: runs of this process.
    """

    def __init__(
        self, service: GenerationService, store: Store | None, options: Options | None = None
    ) -> None:
        self.options: Final = options or Options()
        self.generate: Callable[[GenerationRequest, Course, Record | None], Pieces] = (
            lambda request, course, _: service.run(request, course)
        )
        self.active: set[Run] = set()
        self.resumed = service.metrics.resumed
        self._service = service
        self._model: ServedModel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._renewing: asyncio.Task[None] | None = None
        times = Times(self.options.log_ttl, self.options.background_ttl)
        self._records = None if store is None else Records(store, times)
        self._journal = None if store is None else Journal(store, self.options.bounds)
        if self._journal is not None:
            service.metrics.journal = self._journal

    def start(self) -> None:
        if self._journal is not None:
            self._journal.start()
            self._renewing = asyncio.create_task(self._renew(), name="record-renewal")

    async def close(self, grace: float) -> None:
        """Lets go of all logs, for at most `grace` seconds."""
        if self._renewing is not None:
            self._renewing.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._journal is not None:
            await self._journal.close(grace)

    @property
    def records(self) -> Records:
        """Raises InvalidParameter: nothing is kept here."""
        if self._records is None:
            raise InvalidParameter("this server keeps no generations (--session-store is off)")
        return self._records

    @property
    def resumable(self) -> bool:
        """Whether streams can be resumed here."""
        return self.options.resume and self._records is not None

    @property
    def keeps(self) -> bool:
        """Whether there is a store."""
        return self._records is not None

    def adopted(self, record: Record) -> Run:
        """A run of a record that has lost its own. Nobody waits for it."""
        return self._run(record, alone=True)

    # What a client asks for.

    async def known(self, asked: Asked) -> Answer | None:
        """The answer to a request that was made before; None: it is a new one.

        Raises:
            InvalidParameter: the last event's id is none of this request's, or nothing is kept.
            GenerationNotFound: there is nothing to resume.
            IdempotencyConflict: the key belongs to another request.
            StoreUnavailable: nobody can tell.
        """
        if asked.last_event:
            return await self.resume(asked)
        record = await self.claimed(asked)
        return None if record is None else self.join(record, asked)

    async def resume(self, asked: Asked, request_id: str = "") -> Answer:
        """What comes behind the last event, or all of the request's answer where none is named.

        Raises:
            As `known`.
        """
        param = asked.param
        if not self.resumable:
            raise InvalidParameter(
                f"{param} is not served: streams are not kept here (--resume is off)", param=param
            )
        name, text = request_id, ""
        if asked.last_event:
            name, text = split_event_id(asked.last_event, param)
            if request_id and name != request_id:
                raise InvalidParameter(f"{param} is of another generation: {name}", param=param)
        record = await self.records.find(name, asked.owner)
        if asked.digest and asked.digest != record.digest:
            raise InvalidParameter(
                f"{param} is of a request with another body; repeat it as it was", param=param
            )
        cursor = None
        if text:
            cursor = parse_cursor(text, choices_of(record), record.stop.max_tokens or None, param)
        include_usage = asked.include_usage if asked.digest else record.include_usage
        self.resumed["event_id"] += 1
        return self._answer(record, asked.key, cursor, include_usage, wins=True)

    async def claimed(self, asked: Asked) -> Record | None:
        """The record that the idempotency key stands for; None: it is free. Raises as `known`."""
        if not asked.key:
            return None
        claim = await self._kept_here("Idempotency-Key").claimed(asked.owner, asked.key)
        if claim is None:
            return None
        if claim.digest != asked.digest:
            raise IdempotencyConflict(
                "the idempotency key belongs to another request; use a new one for this request",
                param="Idempotency-Key",
            )
        record = await self.records.get(claim.request_id)
        if record is None or await self.records.failure(claim.request_id) is not None:
            # Gone, or failed: another try is a new one.
            await self.records.unclaim(asked.owner, asked.key, claim.request_id)
            return None
        return record

    def join(self, record: Record, asked: Asked) -> Answer:
        """The answer of a generation that somebody runs, or did, from its beginning."""
        self.resumed["idempotency"] += 1
        return self._answer(record, asked.key, None, asked.include_usage, wins=False)

    async def begin(self, request: GenerationRequest, asked: Asked) -> Answer:
        """The answer to a new request.

        Raises:
            StoreUnavailable: it came with an idempotency key, and nobody can tell whose that is.
            InvalidRequest: such a request cannot be served.
        """
        if asked.key:
            return await self._begin_once(request, asked)
        wanted = self.resumable and (asked.stream or asked.session_id)
        run = self._fresh(request, asked) if wanted else None
        if run is None:
            return plain(request, self.generate(request, Course(), None), asked.include_usage)
        opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        return Answer(
            request,
            run.record,
            self._streamed(run, request, opened),
            None,
            asked.include_usage,
            opened,
        )

    def _fresh(self, request: GenerationRequest, asked: Asked) -> Run | None:
        """None: it will be refused."""
        try:
            self._service.check(request)
        except SlipstreamError:
            # Told, and counted, where requests are run.
            return None
        return self._run(record_of(request, asked, self._served().key), asked.key)

    def _run(self, record: Record, key: str = "", *, alone: bool = False) -> Run:
        assert self._journal is not None
        ttl = self.records.times.log(record)
        return Run(record, self._journal, ttl, self._lost, key=key, alone=alone)

    async def _begin_once(self, request: GenerationRequest, asked: Asked) -> Answer:
        for _ in range(_TRIES):
            try:
                run, known = await self.enter(request, asked)
            except VersionConflict:
                answer = await self.known(asked)
                if answer is not None:
                    return answer
            else:
                source = self.generate(request, run.course(), run.record)
                pieces = self._attached(run, source, known, fresh=True)
                return Answer(request, run.record, pieces, None, asked.include_usage)
        raise StoreUnavailable("the idempotency key is used by others all the time; try again")

    async def enter(
        self, request: GenerationRequest, asked: Asked, *, alone: bool = False
    ) -> tuple[Run, list[Known]]:
        """A new run whose record and logs are there.

        Raises:
            VersionConflict: the idempotency key is somebody else's by now.
            StoreUnavailable, InvalidRequest: as `begin` does.
        """
        try:
            self._service.check(request)
        except SlipstreamError as failure:
            self._service.metrics.errors[failure.code] += 1
            raise
        records = self._kept_here("background" if asked.background else "Idempotency-Key")
        record = record_of(request, asked, self._served().key)
        await records.add(record)
        if asked.key:
            try:
                await records.claim(record, asked.key, expect=0)
            except VersionConflict:
                await records.forget(record)
                raise
        try:
            known, _ = await asyncio.gather(
                records.open(record), records.clear_failure(record.request_id)
            )
        except Fenced as failure:
            raise StoreUnavailable("another request was sooner; try again") from failure
        return self._run(record, asked.key, alone=alone), known

    def _kept_here(self, param: str) -> Records:
        if self._records is None:
            raise InvalidParameter(
                f"{param} is not served: nothing is kept here (--session-store is off)", param=param
            )
        return self._records

    # How a run goes on.

    async def _streamed(
        self, run: Run, request: GenerationRequest, opened: asyncio.Future[bool]
    ) -> Pieces:
        """A new stream; its record is put while it waits for its first token."""
        opening = asyncio.create_task(self._open(run, opened))
        try:
            source = self.generate(request, run.course(), run.record)
            async with contextlib.aclosing(self._attached(run, source, fresh=True)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            opening.cancel()

    async def _open(self, run: Run, opened: asyncio.Future[bool]) -> None:
        kept = False
        try:
            await asyncio.sleep(_HEAD_START_SECONDS)
            async with asyncio.timeout(self.options.patience):
                await self.records.add(run.record)
                run.open(await self.records.open(run.record))
            kept = run.aborted is None
        except (StoreUnavailable, Fenced, TimeoutError) as failure:
            log.warning("%s: cannot be resumed: %r", run.id, failure)
        finally:
            if not kept:
                run.forget()
            if not opened.done():
                opened.set_result(kept)

    async def _attached(
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
        if run.aborted is not None or isinstance(failure, StreamUnread):
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

    def _answer(
        self, record: Record, key: str, cursor: Cursor | None, include_usage: bool, *, wins: bool
    ) -> Answer:
        request = request_of(record)
        if cursor is not None and cursor.complete(include_usage):
            return Answer(request, record, as_pieces(()), cursor, include_usage)
        pieces = self._joined(record, request, key, cursor, wins=wins)
        return Answer(request, record, pieces, cursor, include_usage)

    def follower(
        self, record: Record, request: GenerationRequest, cursor: Cursor | None = None
    ) -> Follower:
        """Raises Unavailable: no verifier has told its model yet."""
        model = self._served()
        fresh = [
            self._service.continuation(index, request, model) for index in range(choices_of(record))
        ]
        return Follower(self.records, record, fresh, cursor.counts if cursor else ())

    def _served(self) -> ServedModel:
        """The model, also while no verifier is there: what was decided can be read without one."""
        try:
            self._model = self._service.model()
        except Unavailable:
            if self._model is None:
                raise
        return self._model

    async def _joined(
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
                        yield piece
                if follower.over:
                    return
                await self._still_there(record)
                with contextlib.suppress(Fenced):
                    known = await self.records.take(record, follower.known, wins=wins)
        except StoreUnavailable as failure:
            # The tokens are the same without it.
            log.warning("%s: goes on without the store: %s", record.request_id, failure.message)
        run = self._run(record, key)
        pasts = follower.pasts()
        if known is None:
            run.forget()
        else:
            pasts = [replace(p, messages=k.messages) for p, k in zip(pasts, known, strict=True)]
        source = self.generate(request, run.course(pasts), record)
        async with contextlib.aclosing(self._attached(run, source, known)) as pieces:
            async for piece in pieces:
                if piece.index not in follower.ended:
                    yield piece

    async def _still_there(self, record: Record) -> None:
        if await self.records.was_deleted(record.request_id):
            raise Cancelled(f"the generation '{record.request_id}' was deleted")

    # What becomes of runs from outside.

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
            await asyncio.sleep(min(self.options.log_ttl, self.options.background_ttl) / 8)
            for run in list(self.active):
                if time.monotonic() - run.renewed < self.records.times.log(run.record) / 2:
                    continue
                with contextlib.suppress(StoreUnavailable):
                    await self.records.renew(run.id, run.key)
                    run.renewed = time.monotonic()

    async def standing(self, request_id: str, owner: str) -> Standing:
        """Raises GenerationNotFound, and StoreUnavailable."""
        record = await self.records.find(request_id, owner)
        request = request_of(record)
        failure = await self.records.failure(request_id)
        follower = self.follower(record, request)
        pieces = tuple([piece async for piece in follower.now()])
        state: Literal["in_progress", "completed", "failed", "interrupted"]
        if follower.over:
            state = "completed"
        elif failure is not None:
            state = "failed"
        elif record.background or follower.alive:
            state = "in_progress"
        else:
            state = "interrupted"
        return Standing(record, request, state, pieces, failure)

    async def delete(self, request_id: str, owner: str) -> None:
        """Ends it, wherever it runs, and forgets it. Raises as `standing`."""
        record = await self.records.find(request_id, owner)
        await self.records.delete(record)
        for run in [run for run in self.active if run.id == request_id]:
            run.abort(Cancelled(f"the generation '{request_id}' was deleted"))


async def as_pieces(pieces: Iterable[Piece]) -> Pieces:
    """What is there already, as it would come."""
    for piece in pieces:
        yield piece
