"""A turn's hold on its session's document: taken, written over, given back.

Whatever the clocks say about a claim, only who knows the document's version writes it. A write that
was not confirmed may have happened: the next one finds out by the name of the writer.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import Literal

from gateway.sessions import records
from gateway.sessions.desk import Desk
from slipstream.core.errors import SessionConflict
from slipstream.store import IndexFull, VersionConflict
from slipstream.wire.proto import gateway_pb2, store_pb2

# In between come, at most, a write of ours that was thought lost, and another's claim.
_TRIES = 4
# Of a write: done; done before, by another run of the request; not done, since the session was
# deleted, or is another request's.
Outcome = Literal["written", "stored", "deleted", "lost"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A session as it was read, before its next turn.

    Attributes:
        record: as it was then, or a new one.
        version: of its document; 0 where there is none; None where the store could not be asked.
        before: turns that the session had when the request came.
        trouble: why the store could not be asked.
        made: whether the turn makes the session, or does if it is not there.
        forgiving: whether the turn is served without memory where the store fails.
        resumed: whether the request was begun before: it may take its own claim over.
        committed: whether the turn, of a request that is resumed, is stored already.
        gone: whether the session of a request that is resumed is there no more.
    """

    record: store_pb2.SessionRecord
    version: int | None
    before: int
    trouble: str = ""
    made: bool = False
    forgiving: bool = False
    resumed: bool = False
    committed: bool = False
    gone: bool = False


class Claim:
    """One for each turn.

    Attributes:
        request_id: whose it is; may change until the turn is stored.
        held: whether it was taken; afterwards it may be lost.
    """

    def __init__(self, desk: Desk, opened: Opened, request_id: str) -> None:
        self._desk = desk
        self._opened = opened
        self.request_id = request_id
        # Two requests may have one name: their clients choose it.
        self._nonce = uuid.uuid4().hex[:16]
        self._key = records.key(opened.record.owner, opened.record.id)
        self._version = opened.version
        self._written = self._desk.monotonic()
        self._asked = False
        self.held = False

    async def take(self) -> None:
        """
        Raises:
            SessionConflict: another request has written the session, or is writing it.
            TooManySessions: the turn would make one more than may be.
        """
        record = self.record()
        for _ in range(_TRIES):
            try:
                self._asked = True
                await self._write(record)
            except VersionConflict:
                self._asked = False
                await self._reread()
            else:
                self.held = True
                return
        raise self.conflict()

    def record(self) -> store_pb2.SessionRecord:
        """The session before the turn, claimed from now on."""
        made = records.copy(self._opened.record)
        writer = f"{self.request_id}/{self._nonce}"
        records.claim(made, writer, self._desk.clock(), self._desk.limits)
        return made

    def _ours(self, found: store_pb2.SessionRecord) -> bool:
        return str(found.writer).endswith(f"/{self._nonce}")

    def conflict(self) -> SessionConflict:
        return SessionConflict(
            f"another request has written session '{self._opened.record.id}' in the meantime, or is"
            " writing it, so that this turn is not part of it; read the session and send it again",
            param="session_id",
        )

    @property
    def lifetime(self) -> float:
        """Seconds: a session that is in use does not end under it, however short its time."""
        return max(self._opened.record.ttl_seconds, 2 * self._desk.limits.claim)

    async def _write(self, record: store_pb2.SessionRecord) -> None:
        """Raises VersionConflict, TooManySessions."""
        if self._opened.made and not self.held:
            # Until the session is listed. Where nothing is written in the end, the place is free
            # again soon, though this process may be gone.
            await self._desk.enter(record, 2 * self._desk.limits.claim)
        ttl = self.lifetime if record.writer else record.ttl_seconds
        began = self._desk.monotonic()
        value = record.SerializeToString()
        self._version = await self._desk.store.put(self._key, value, ttl=ttl, expect=self._version)
        self._written = began

    async def _reread(self) -> None:
        """The document has changed since it was opened, but maybe not what it says."""
        document, opened = await self._desk.store.get(self._key), self._opened
        found = records.read(document)
        if found is None:
            if not opened.made:
                raise self.conflict()
        else:
            own = records.request_of(found.writer) == self.request_id
            if not (opened.resumed and own):
                self._desk.refuse_writer(found)
            if not _as_it_was(found, opened.record):
                raise self.conflict()
        self._version = 0 if document is None else document.version

    async def put(
        self, record: store_pb2.SessionRecord, turn: gateway_pb2.SessionTurn | None = None
    ) -> Outcome:
        """Writes the record, unless the document is no longer this claim's.

        Args:
            turn: the one that the record adds, if it does.
        """
        if self._desk.monotonic() - self._written > self._desk.limits.claim:
            # The version may be another life's of that document.
            self._version = None
        for _ in range(_TRIES):
            if self._version is None and (refusal := await self._adopt(turn)):
                return refusal
            try:
                await self._write(record)
                return "written"
            except VersionConflict:
                self._version = None
        return "lost"

    async def _adopt(self, turn: gateway_pb2.SessionTurn | None) -> Outcome | None:
        """Finds the version to write over, or why there is none."""
        document = await self._desk.store.get(self._key)
        found = records.read(document)
        if found is None and document is not None and self.held:
            return "deleted"
        if document is None or found is None:
            # A store that came back empty gets the session back: this turn knows all of it.
            self._version = 0 if document is None else document.version
            return None
        free = not records.claim_left(found, self._desk.clock(), self._desk.limits)
        if self._ours(found) or (free and _as_it_was(found, self._opened.record)):
            self._version = document.version
            return None
        if len(found.turns) > self._opened.before:
            there = found.turns[self._opened.before]
            if there.request_id == self.request_id and (turn is None or _same(there, turn)):
                return "stored"
        return "lost"

    async def free(self) -> None:
        """Leaves everything as it was before, if the document is still this claim's."""
        if not self._asked:
            return
        store, record = self._desk.store, records.copy(self._opened.record)
        document = await store.get(self._key)
        found = records.read(document)
        if document is None or found is None or not self._ours(found):
            return
        records.release(record, self._desk.clock())
        value, ttl = record.SerializeToString(), record.ttl_seconds
        if self._opened.made:
            # Nothing is left of a session that the turn would have made.
            value, ttl = records.TOMBSTONE, records.TOMBSTONE_SECONDS
        # On a conflict somebody else has it.
        with contextlib.suppress(VersionConflict):
            await store.put(self._key, value, ttl=ttl, expect=document.version)
            if self._opened.made:
                await store.index_remove(records.index(record.owner), record.id)
            else:
                await self.index()

    async def index(self) -> None:
        """The session's place in the list of its owner's, for as long as the session has. One that
        was deleted in the meantime takes no place again."""
        store, record, ttl = self._desk.store, self._opened.record, self.lifetime
        index = records.index(record.owner)
        try:
            # Renewed if it is there.
            await store.index_add(index, record.id, ttl=ttl, most=0)
        except IndexFull:
            if records.read(await store.get(self._key)) is not None:
                await store.index_add(index, record.id, ttl=ttl)


def _as_it_was(found: store_pb2.SessionRecord, before: store_pb2.SessionRecord) -> bool:
    """Whether a turn that was prepared on `before` continues `found`."""
    return (found.created_unix, found.ttl_seconds, found.turns) == (
        before.created_unix,
        before.ttl_seconds,
        before.turns,
    )


def _same(one: gateway_pb2.SessionTurn, other: gateway_pb2.SessionTurn) -> bool:
    """How much of a prompt was cached depends on where the turn ran."""
    kept = []
    for turn in (one, other):
        plain = gateway_pb2.SessionTurn()
        plain.CopyFrom(turn)
        plain.usage.ClearField("cached_prompt_tokens")
        kept.append(plain)
    return kept[0] == kept[1]
