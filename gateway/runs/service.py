"""Generations that are kept: begun, joined, resumed, looked at, deleted. What both doors use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from gateway.continuation import Piece
from gateway.course import Course
from gateway.generation import GenerationService
from gateway.request import GenerationRequest
from gateway.runs.answer import Answer, plain
from gateway.runs.cursor import Cursor, parse_cursor, split_event_id
from gateway.runs.keeper import Keeper, Turns
from gateway.runs.log import Known
from gateway.runs.options import Options
from gateway.runs.record import (
    KEY_HEADER,
    Asked,
    Pieces,
    Record,
    choices_of,
    record_of,
    request_of,
)
from gateway.runs.run import Run
from gateway.runs.standing import Standing, standing_of
from slipstream.core.errors import (
    Cancelled,
    IdempotencyConflict,
    InvalidParameter,
    SlipstreamError,
    StoreUnavailable,
    TooManyGenerations,
    Unavailable,
)
from slipstream.store import Fenced, Store, VersionConflict

_TRIES = 4


class Runs:
    """One for the process. `start` begins to write logs, `close` ends it.

    Args:
        service: runs requests.
        store: where they are kept; None: nothing is.
        options: how.
        turns: of sessions, which some requests are.

    Attributes:
        resumed: generations that went on from their logs, by the way that led there.
    """

    def __init__(
        self,
        service: GenerationService,
        store: Store | None,
        options: Options | None = None,
        turns: Turns | None = None,
    ) -> None:
        self.options: Final = options or Options()
        self.resumed = service.metrics.resumed
        self._service = service
        self._keeper = None if store is None else Keeper(service, store, self.options, turns)

    def start(self) -> None:
        if self._keeper is not None:
            self._keeper.start()

    async def close(self, grace: float) -> None:
        """Lets go of all logs, for at most `grace` seconds."""
        if self._keeper is not None:
            await self._keeper.close(grace)

    def serves(self, record: Record) -> bool:
        """Whether a verifier here can go on with a generation."""
        try:
            self._service.pool.model(record.model_key)
        except Unavailable:
            return False
        return True

    @property
    def keeps(self) -> bool:
        """Whether there is a store."""
        return self._keeper is not None

    @property
    def resumable(self) -> bool:
        """Whether streams can be resumed here."""
        return self.options.resume and self.keeps

    @property
    def keeper(self) -> Keeper:
        """Raises InvalidParameter: nothing is kept here."""
        return self._kept_here("id")

    def _kept_here(self, param: str) -> Keeper:
        if self._keeper is None:
            raise InvalidParameter(
                f"{param} is not served: nothing is kept here (--session-store is off)", param=param
            )
        return self._keeper

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
        self._kept_here(param if asked.last_event else "id")
        if not self.resumable:
            raise InvalidParameter(
                f"{param} is not served: streams are not kept here (--resume is off)", param=param
            )
        name, text = request_id, ""
        if asked.last_event:
            name, text = split_event_id(asked.last_event, param)
            if request_id and name != request_id:
                raise InvalidParameter(f"{param} is of another generation: {name}", param=param)
        record = await self.keeper.records.find(name, asked.owner)
        if asked.digest and asked.digest != record.digest:
            raise InvalidParameter(
                f"{param} is of a request with another body; repeat it as it was", param=param
            )
        cursor = None
        if text:
            cursor = parse_cursor(text, choices_of(record), record.stop.max_tokens or None, param)
        include_usage = asked.include_usage if asked.digest else record.include_usage
        self.resumed["event_id"] += 1
        # One in the background is left to whoever runs it: no client does.
        wins = not record.background
        return self._answer(record, asked.key, cursor, include_usage, wins=wins)

    async def claimed(self, asked: Asked) -> Record | None:
        """The record that the idempotency key stands for; None: it is free. Raises as `known`."""
        if not asked.key:
            return None
        claim = await self._kept_here(KEY_HEADER).records.claimed(asked.owner, asked.key)
        if claim is None:
            return None
        if claim.digest != asked.digest:
            raise IdempotencyConflict(
                "the idempotency key belongs to another request; use a new one for this request",
                param=KEY_HEADER,
            )
        record = await self.keeper.records.get(claim.request_id)
        if record is None or await self.keeper.records.failure(claim.request_id) is not None:
            # Gone, or failed: another try is a new one.
            await self.keeper.records.unclaim(asked.owner, asked.key, claim.request_id)
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
            TooManyGenerations: it came with one, and cannot be kept.
            InvalidRequest: such a request cannot be served.
        """
        if asked.key:
            return await self._begin_once(request, asked)
        wanted = self.resumable and (asked.stream or asked.session_id)
        run = self._fresh(request, asked) if wanted else None
        if run is None:
            return plain(request, self._first(request, asked), asked.include_usage)
        opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        return Answer(
            request,
            run.record,
            self.keeper.streamed(run, self._first(request, asked, run), opened),
            None,
            asked.include_usage,
            opened,
        )

    def _first(self, request: GenerationRequest, asked: Asked, run: Run | None = None) -> Pieces:
        """A new request's pieces, and the run that they are of, where it is kept."""
        course = Course() if run is None else run.course()
        pieces = self._service.run(request, course)
        if asked.recorded is None:
            return pieces
        name = None if run is None else lambda: run.id
        return asked.recorded(pieces, request, course, name)

    def _fresh(self, request: GenerationRequest, asked: Asked) -> Run | None:
        """None: it will be refused."""
        try:
            self._service.check(request)
        except SlipstreamError:
            # Told, and counted, where requests are run.
            return None
        return self.keeper.run(record_of(request, asked, self.keeper.served().key), asked.key)

    async def _begin_once(self, request: GenerationRequest, asked: Asked) -> Answer:
        for _ in range(_TRIES):
            try:
                run, known = await self.enter(request, asked)
            except VersionConflict:
                answer = await self.known(asked)
                if answer is not None:
                    return answer
            else:
                source = self._first(request, asked, run)
                pieces = self.keeper.attached(run, source, known, fresh=True)
                return self._made(request, run.record, pieces, None, asked.include_usage)
        raise StoreUnavailable("the idempotency key is used by others all the time; try again")

    async def enter(
        self, request: GenerationRequest, asked: Asked, *, alone: bool = False
    ) -> tuple[Run, list[Known]]:
        """A new run whose record and logs are there.

        Raises:
            VersionConflict: the idempotency key is somebody else's by now.
            TooManyGenerations, StoreUnavailable, InvalidRequest: as `begin` does.
        """
        try:
            self._service.check(request)
        except SlipstreamError as failure:
            self._service.metrics.errors[failure.code] += 1
            raise
        records = self._kept_here("background" if asked.background else KEY_HEADER).records
        record = record_of(request, asked, self.keeper.served().key)
        await records.add(record)
        if asked.key:
            try:
                await records.claim(record, asked.key, expect=0)
            except VersionConflict:
                await records.forget(record)
                raise
        try:
            known = await records.open(record, awaited=True)
        except Fenced as failure:
            raise StoreUnavailable("another request was sooner; try again") from failure
        except TooManyGenerations as failure:
            self._service.metrics.errors[failure.code] += 1
            self._service.metrics.refused["generations"] += 1
            if asked.key:
                # Others may have joined it by now.
                await self.keeper.fail(self.keeper.run(record, asked.key), failure)
            await records.forget(record)
            raise
        return self.keeper.run(record, asked.key, alone=alone), known

    def _answer(
        self, record: Record, key: str, cursor: Cursor | None, include_usage: bool, *, wins: bool
    ) -> Answer:
        request = request_of(record)
        if cursor is not None and cursor.complete(include_usage):
            return self._made(request, record, as_pieces(()), cursor, include_usage)
        pieces = self.keeper.joined(record, request, key, cursor, wins=wins)
        return self._made(request, record, pieces, cursor, include_usage)

    def _made(
        self,
        request: GenerationRequest,
        record: Record,
        pieces: Pieces,
        cursor: Cursor | None,
        include_usage: bool,
    ) -> Answer:
        return Answer(request, record, pieces, cursor, include_usage, resumable=self.resumable)

    async def standing(self, request_id: str, owner: str) -> Standing:
        """How far it has come. Raises GenerationNotFound, and StoreUnavailable."""
        keeper = self.keeper
        return await standing_of(keeper, await keeper.records.find(request_id, owner))

    async def delete(self, request_id: str, owner: str) -> None:
        """Ends it, wherever it runs, and forgets it. Raises as `standing`."""
        record = await self.keeper.records.find(request_id, owner)
        await self.keeper.records.delete(record)
        for run in [run for run in self.keeper.active if run.id == request_id]:
            run.abort(Cancelled(f"the generation '{request_id}' was deleted"))


async def as_pieces(pieces: Iterable[Piece]) -> Pieces:
    """What is there already, as it would come."""
    for piece in pieces:
        yield piece
