"""All sessions: made, read, listed, deleted, forked, opened for a turn.

Nothing is kept here: every call reads the store, so any number of gateways may serve one session.
Every change of a document is a compare-and-set on its version, the session's fencing generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable

from gateway.sessions import records
from gateway.sessions.claim import Opened
from gateway.sessions.desk import Desk
from gateway.sessions.records import Limits
from gateway.sessions.turn import Turn
from slipstream.core.errors import (
    InvalidParameter,
    SessionConflict,
    SessionNotFound,
    StoreUnavailable,
)
from slipstream.store import IndexFull, Store, VersionConflict
from slipstream.wire.proto import gateway_pb2, store_pb2

MAX_PAGE = 100
DEFAULT_PAGE = 20
_TRIES = 4
# Records read side by side for a page of a list, each as large as a session may be.
_READ_AT_ONCE = 8


class Sessions:
    """One for the process. All calls raise StoreUnavailable, but for `open` as it says.

    Args:
        store: bounds its own waits.
        limits: of each session.
        clock, monotonic: for tests.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.limits = limits or Limits()
        self.desk = Desk(store, self.limits, clock, monotonic)

    async def close(self) -> None:
        """Lets what is still being written end, for a second. The store is not closed."""
        await self.desk.close()

    async def create(
        self, owner: str, session_id: str = "", ttl: float | None = None
    ) -> gateway_pb2.Session:
        """A session without turns.

        Args:
            session_id: empty for a random one.
            ttl: seconds; None for the default.

        Raises:
            InvalidParameter: the id or the time is not one.
            SessionConflict: there is one of that id.
            TooManySessions: there are as many as may be.
        """
        record = self.new(owner, session_id or _random_id(), ttl)
        await self._add(record)
        return records.told(record, self.limits)

    def new(self, owner: str, session_id: str, ttl: float | None = None) -> store_pb2.SessionRecord:
        now = self.desk.clock()
        record = store_pb2.SessionRecord(
            owner=owner,
            id=records.checked_id(session_id, "id"),
            created_unix=int(now),
            ttl_seconds=self.limits.lifetime(ttl),
        )
        records.release(record, now)
        return record

    async def _add(self, record: store_pb2.SessionRecord) -> None:
        # The index first: it may name what is not there, never the other way round. For a moment
        # only, so that a session that was not written after all takes no room.
        await self.desk.enter(record, 2 * self.limits.claim)
        if not await self._put(record):
            raise SessionConflict(
                f"there is a session '{record.id}' already; delete it first, or choose another id",
                param="id",
            )
        # Who has deleted it meanwhile has taken it out.
        with contextlib.suppress(IndexFull):
            index, ttl = records.index(record.owner), record.ttl_seconds
            await self.store.index_add(index, record.id, ttl=ttl, most=0)

    async def _put(self, record: store_pb2.SessionRecord) -> bool:
        """Whether the session was written. Else there is one of its id, or was just now."""
        key, value = records.key(record.owner, record.id), record.SerializeToString()
        version = 0
        for _ in range(2):
            with contextlib.suppress(VersionConflict):
                await self.store.put(key, value, ttl=record.ttl_seconds, expect=version)
                return True
            document = await self.store.get(key)
            if records.read(document) is not None:
                return False
            # In the place of a deleted one.
            version = 0 if document is None else document.version
        return False

    async def get(self, owner: str, session_id: str) -> gateway_pb2.Session:
        """Raises SessionNotFound, also where it is another owner's."""
        return records.told(await self._found(owner, session_id), self.limits)

    async def _found(self, owner: str, session_id: str) -> store_pb2.SessionRecord:
        key = records.key(owner, records.checked_id(session_id, "id"))
        record = records.read(await self.store.get(key))
        if record is None:
            raise _not_found(session_id, "id")
        return record

    async def list(
        self, owner: str, after: str = "", limit: int = DEFAULT_PAGE
    ) -> tuple[list[gateway_pb2.Session], bool]:
        """Sessions without their turns, by id, and whether there are more behind them.

        Raises:
            InvalidParameter: `limit` is not in [1, 100], or `after` is no id.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidParameter(f"limit must be in [1, {MAX_PAGE}], got {limit}", param="limit")
        place = records.checked_id(after, "after") if after else ""
        found: list[gateway_pb2.Session] = []
        while len(found) <= limit:
            wanted = min(_READ_AT_ONCE, limit + 1 - len(found))
            ids = await self.store.index_list(records.index(owner), place, wanted)
            if not ids:
                break
            read = await asyncio.gather(*(self._listed(owner, each) for each in ids))
            found += [session for session in read if session is not None]
            place = ids[-1]
        return found[:limit], len(found) > limit

    async def _listed(self, owner: str, session_id: str) -> gateway_pb2.Session | None:
        record = records.read(await self.store.get(records.key(owner, session_id)))
        return None if record is None else records.told(record, self.limits, turns=False)

    async def delete(self, owner: str, session_id: str) -> None:
        """A turn that runs is answered, and says that it was not stored.

        Raises:
            SessionNotFound: there is none.
        """
        key = records.key(owner, records.checked_id(session_id, "id"))
        for _ in range(_TRIES):
            document = await self.store.get(key)
            if document is None or document.value == records.TOMBSTONE:
                raise _not_found(session_id, "id")
            value, ttl = records.TOMBSTONE, records.TOMBSTONE_SECONDS
            # Of this version: one that arrives late must not end what has come since.
            with contextlib.suppress(VersionConflict):
                await self.store.put(key, value, ttl=ttl, expect=document.version)
                await self.store.index_remove(records.index(owner), session_id)
                return
        raise SessionConflict(f"session '{session_id}' changes all the time; try again", param="id")

    async def fork(
        self, owner: str, session_id: str, turns: int | None = None, new_id: str = ""
    ) -> gateway_pb2.Session:
        """A new session that begins with the first turns of another, which stays as it is.

        Args:
            turns: how many; None for all that are stored.
            new_id: empty for a random one.

        Raises:
            SessionNotFound: there is no such session.
            SessionConflict: there is one of the new id.
            TooManySessions: there are as many as may be.
            InvalidParameter: it has not so many turns, or an id is not one.
        """
        record = await self._found(owner, session_id)
        count = len(record.turns) if turns is None else turns
        if not 0 <= count <= len(record.turns):
            raise InvalidParameter(
                f"turns must be in [0, {len(record.turns)}], what session '{session_id}' has;"
                f" got {count}",
                param="turns",
            )
        made = self.new(owner, new_id or _random_id(), record.ttl_seconds)
        made.turns.extend(record.turns[:count])
        if count:
            made.kind, made.kv_holder = record.kind, record.kv_holder
            made.kv_incarnation = record.kv_incarnation
            usage = made.turns[-1].usage
            made.prefix.length = usage.prompt_tokens + usage.completion_tokens
        await self._add(made)
        return records.told(made, self.limits)

    async def open(self, owner: str, session_id: str, expected: int | None) -> Opened:
        """A session as it is now, to prepare its next turn. Nothing is written.

        Args:
            expected: how many turns it must have; 0 also where there is none: it will be made, and
                where the store cannot be asked it is served without memory. None: it must exist.

        Raises:
            SessionNotFound: there is none.
            SessionConflict: it has another number of turns, or another request is writing.
            StoreUnavailable: the store cannot be asked, and `expected` is not 0.
        """
        key = records.key(owner, records.checked_id(session_id, "session_id"))
        try:
            document = await self.store.get(key)
        except StoreUnavailable as failure:
            if expected != 0:
                raise
            new = self.new(owner, session_id)
            return Opened(new, None, 0, failure.message, made=True, forgiving=True)
        record = records.read(document)
        version = 0 if document is None else document.version
        if record is None:
            if expected != 0:
                raise _not_found(session_id, "session_id")
            new = self.new(owner, session_id)
            return Opened(new, version, 0, made=True, forgiving=True)
        if expected is not None and expected != len(record.turns):
            raise SessionConflict(
                f"session '{session_id}' has {len(record.turns)} turns, not {expected}; read it and"
                " go on from there, or fork it at the turn you mean",
                param="session_turn",
            )
        self.desk.refuse_writer(record)
        return Opened(record, version, len(record.turns), forgiving=expected == 0)

    @contextlib.asynccontextmanager
    async def turn(
        self, owner: str, session_id: str, expected: int | None, request_id: str
    ) -> AsyncIterator[Turn]:
        """The session, opened and claimed. Raises what `open` and `Turn` do."""
        opened = await self.open(owner, session_id, expected)
        async with Turn(self.desk, opened, request_id) as turn:
            yield turn

    async def resume(self, owner: str, session_id: str, before: int, request_id: str) -> Opened:
        """The session of a turn that was begun before, maybe by a gateway that is gone.

        Its claim is taken over; a turn that is stored already will not be stored again; one whose
        session is gone is answered, and says that it was not stored.

        Args:
            before: how many turns the session had when the request came.

        Raises:
            SessionConflict: the session has gone on without it, or another request is writing.
            StoreUnavailable: the store cannot be asked, and there was a turn before.
        """
        try:
            document = await self.store.get(records.key(owner, session_id))
        except StoreUnavailable as failure:
            if before:
                raise
            new = self.new(owner, session_id)
            return Opened(new, None, 0, failure.message, made=True, forgiving=True, resumed=True)
        record = records.read(document)
        version = 0 if document is None else document.version
        if record is None:
            # One that its first turn had made went with it when the client did.
            new = self.new(owner, session_id)
            return Opened(
                new,
                version,
                before,
                made=True,
                forgiving=before == 0,
                resumed=True,
                gone=before > 0,
            )
        if len(record.turns) > before and record.turns[before].request_id == request_id:
            return Opened(record, version, before, resumed=True, committed=True)
        if len(record.turns) != before:
            raise SessionConflict(
                f"session '{session_id}' has gone on without this request: it has"
                f" {len(record.turns)} turns, and had {before}"
            )
        if records.request_of(record.writer) != request_id:
            self.desk.refuse_writer(record)
        return Opened(record, version, before, forgiving=before == 0, resumed=True)


def _not_found(session_id: str, param: str) -> SessionNotFound:
    return SessionNotFound(
        f"there is no session '{session_id}', or not any more; a turn with session_turn 0 begins"
        " it, and so does creating it",
        param=param,
    )


def _random_id() -> str:
    return f"sess-{uuid.uuid4().hex}"
