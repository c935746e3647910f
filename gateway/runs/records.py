"""Generations in the store: their records, logs and keys, and how they ended."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from gateway.runs import failure as failures
from gateway.runs.log import Known, read
from gateway.runs.record import Record, choices_of
from slipstream.core.errors import (
    GenerationNotFound,
    SlipstreamError,
    StoreUnavailable,
    TooManyGenerations,
)
from slipstream.store import Fenced, IndexFull, LogView, Store, VersionConflict
from slipstream.wire.proto import store_pb2

_T = TypeVar("_T")
BACKGROUND = "background"
# Running ones that their gateway let go.
FREE = "background/free"
_TRIES = 5
_DIGEST_BYTES = 32
# A position that no log comes to: only what stands beside the entries is read.
_FAR = 2**31
# What stands where a record was deleted: whoever runs it finds out, and its id stays taken.
_DELETED = b""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds for which logs are kept after their last entry, those of background runs longer."""

    log_ttl: float
    background_ttl: float

    def log(self, record: Record) -> float:
        return self.background_ttl if record.background else self.log_ttl

    def record(self, record: Record) -> float:
        """It is renewed while the request runs, and outlives its logs."""
        return 2 * self.log(record)


@dataclass(frozen=True, slots=True)
class Claim:
    """Whom an idempotency key belongs to, and the version of the document that says so."""

    request_id: str
    digest: bytes
    version: int


class Records:
    """One for the process. Everything raises StoreUnavailable where the store does not answer.

    Args:
        most: generations of one owner; 0 for no bound.
    """

    def __init__(self, store: Store, times: Times, most: int = 0) -> None:
        self.store = store
        self.times = times
        self._most = most

    async def add(self, record: Record) -> int:
        """Puts a new record, under another id where its own is taken; returns its version."""
        wanted = record.request_id
        for _ in range(_TRIES):
            with contextlib.suppress(VersionConflict):
                return await self.store.put(
                    _key(record.request_id),
                    record.SerializeToString(),
                    ttl=self.times.record(record),
                    expect=0,
                )
            record.request_id = f"{wanted}-{uuid.uuid4().hex[:12]}"
        raise StoreUnavailable(f"the store does not take a record for {wanted}")

    async def get(self, request_id: str) -> Record | None:
        """The record, whoever owns it; None where there is none, or not any more."""
        found = await self.store.get(_key(request_id))
        return None if found is None or found.value == _DELETED else Record.FromString(found.value)

    async def find(self, request_id: str, owner: str) -> Record:
        """Raises GenerationNotFound: there is none that is the owner's."""
        record = await self.get(request_id)
        if record is None or record.owner != owner:
            raise GenerationNotFound(
                f"there is no generation '{request_id}', or not any more", param="id"
            )
        return record

    async def was_deleted(self, request_id: str) -> bool:
        """Whether its client has deleted it, and not the store lost it."""
        found = await self.store.get(_key(request_id))
        return found is not None and found.value == _DELETED

    async def renew(self, request_id: str, key: str = "") -> None:
        """Keeps a record, and the claim of an idempotency key, for longer."""
        found = await self.store.get(_key(request_id))
        if found is None or found.value == _DELETED:
            return
        record = Record.FromString(found.value)
        ttl = self.times.record(record)
        # Who is in between has renewed it, too, or has deleted it.
        with contextlib.suppress(VersionConflict):
            await self.store.put(_key(request_id), found.value, ttl=ttl, expect=found.version)
            if self._most:
                await self.store.index_add(_index(record.owner), request_id, ttl=ttl)
        if record.background:
            await self.store.index_add(BACKGROUND, request_id, ttl=ttl)
        claim = await self.claimed(record.owner, key) if key else None
        if claim is not None and claim.request_id == request_id:
            with contextlib.suppress(VersionConflict):
                await self.claim(record, key, expect=claim.version)

    async def logs(self, record: Record, starts: Mapping[int, int]) -> dict[int, Known | None]:
        """What the logs of some continuations hold from a position on, by index."""
        keys = [(log_key(record.request_id, index), start) for index, start in starts.items()]
        views = await _all(self.store.log_read(key, start) for key, start in keys)
        return {
            index: None if view is None else read(view, start)
            for view, (index, start) in zip(views, starts.items(), strict=True)
        }

    async def beats(self, request_id: str) -> float:
        """Seconds since the first continuation's log was written to; infinite where it has ended or
        is not there, which says nothing of the others'."""
        view = await self.store.log_read(log_key(request_id, 0), _FAR)
        return float("inf") if view is None or view.ended else view.age

    async def take(
        self, record: Record, known: Mapping[int, Known | None], *, wins: bool
    ) -> list[Known]:
        """Takes all logs over that have not ended; what every log holds now, by index.

        Args:
            known: what was last read of each, from whatever position on.
            wins: whether to take it from somebody who does the same at the same time.

        Raises:
            Fenced: somebody else has taken them over.
        """
        # Whoever has the first one has them all: of two that try, one gets everything.
        first = await self._take(record, 0, known.get(0), _TRIES if wins else 1)
        others = range(1, choices_of(record))
        return [
            first,
            *await _all(self._take(record, i, known.get(i), _TRIES) for i in others),
        ]

    async def _take(self, record: Record, index: int, known: Known | None, tries: int) -> Known:
        fence = 1 if known is None else known.fence + 1
        ttl = self.times.log(record)
        for attempt in range(tries):
            try:
                view = await self.store.log_open(log_key(record.request_id, index), fence, ttl=ttl)
            except Fenced as failure:
                if attempt == tries - 1:
                    raise
                fence = failure.fence + 1
            else:
                return read(view)
        raise AssertionError("unreachable")

    async def open(self, record: Record, *, awaited: bool = False) -> list[Known]:
        """New logs, and a place among its owner's generations, of a record that was added.

        Until it is known that there is no place the record is there all the same: of generations
        that begin at one moment there may be more records than places, for that moment.

        Args:
            awaited: others may ask how it ended; what one of the same id has left there goes.

        Raises:
            Fenced: somebody else was sooner.
            TooManyGenerations: there is no place. The record is to be forgotten.
        """
        ttl = self.times.log(record)
        keys = [log_key(record.request_id, index) for index in range(choices_of(record))]
        beside: list[Awaitable[LogView | None]] = [self._enter(record)]
        if awaited:
            # Ends before this does, whatever fails: how this one ends is not removed.
            beside.append(self._clear_failure(record.request_id))
        views = await _all([*(self.store.log_open(key, 1, ttl=ttl) for key in keys), *beside])
        return [read(view) for view in views if view is not None]

    async def _enter(self, record: Record) -> None:
        if not self._most:
            return
        index, ttl = _index(record.owner), self.times.record(record)
        try:
            await self.store.index_add(index, record.request_id, ttl=ttl, most=self._most)
        except IndexFull as full:
            raise TooManyGenerations(
                f"{full.members} generations are kept, and for one API key there may be"
                f" {self._most} (--max-generations-per-key): delete some that are not needed any"
                f" more (DELETE /v1/generations/ID), or wait; each is kept for {ttl:g} s at most"
                " after its last token"
            ) from full

    async def claim(self, record: Record, key: str, expect: int) -> None:
        """Makes the key the record's. Raises VersionConflict: it is another's."""
        value = record.digest + record.request_id.encode()
        where = _claim(record.owner, key)
        await self.store.put(where, value, ttl=self.times.record(record), expect=expect)

    async def claimed(self, owner: str, key: str) -> Claim | None:
        found = await self.store.get(_claim(owner, key))
        if found is None:
            return None
        digest, name = found.value[:_DIGEST_BYTES], found.value[_DIGEST_BYTES:]
        return Claim(name.decode(), digest, found.version)

    async def unclaim(self, owner: str, key: str, request_id: str) -> None:
        """Makes the key free for another try, where it is still this request's."""
        claim = await self.claimed(owner, key)
        if claim is not None and claim.request_id == request_id:
            with contextlib.suppress(VersionConflict):
                await self.store.delete(_claim(owner, key), expect=claim.version)

    async def fail(self, record: Record, failure: SlipstreamError) -> None:
        """Notes how it ended."""
        value = failures.to_message(failure).SerializeToString()
        await self.store.put(_end(record.request_id), value, ttl=self.times.log(record))

    async def failure(self, request_id: str) -> SlipstreamError | None:
        found = await self.store.get(_end(request_id))
        if found is None:
            return None
        return failures.to_error(store_pb2.GenerationFailure.FromString(found.value))

    async def _clear_failure(self, request_id: str) -> None:
        await self.store.delete(_end(request_id))

    async def forget(self, record: Record) -> None:
        """Removes record and logs, so that nothing is left but, maybe, how it ended."""
        await self.store.delete(_key(record.request_id))
        await self._drop_logs(record)
        await self._leave(record)

    async def _leave(self, record: Record) -> None:
        if self._most:
            await self.store.index_remove(_index(record.owner), record.request_id)

    async def delete(self, record: Record) -> None:
        """Removes everything; whoever runs it finds out with the next entry."""
        name, ttl = record.request_id, self.times.log(record)
        await self.store.put(_key(name), _DELETED, ttl=ttl)
        await self._drop_logs(record)
        await self._leave(record)
        await self.store.delete(_end(name))
        if record.background:
            await self.left(name)

    async def _drop_logs(self, record: Record) -> None:
        keys = [log_key(record.request_id, index) for index in range(choices_of(record))]
        await _all(self.store.log_delete(key) for key in keys)

    async def left(self, request_id: str) -> None:
        """A background run is over."""
        await self.store.index_remove(BACKGROUND, request_id)
        await self.store.index_remove(FREE, request_id)


async def _all(calls: Iterable[Awaitable[_T]]) -> list[_T]:
    """Results, when all have ended. Raises the first of their failures."""
    found: list[_T] = []
    for each in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(each, BaseException):
            raise each
        found.append(each)
    return found


def _key(request_id: str) -> str:
    return f"gen/{request_id}"


def log_key(request_id: str, index: int) -> str:
    return f"gen/{request_id}/{index}"


def _index(owner: str) -> str:
    return f"generations/{owner}"


def _end(request_id: str) -> str:
    return f"gen/{request_id}/end"


def _claim(owner: str, key: str) -> str:
    return f"idem/{owner}/{key}"
