"""One turn of a session: its claim, which keeps others out, and how it is stored."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Literal, Self

from gateway.sessions import records
from gateway.sessions.desk import Desk
from slipstream.core.errors import SessionConflict, StoreUnavailable
from slipstream.store import VersionConflict
from slipstream.wire.proto import gateway_pb2, store_pb2

# Who may change the document in between are a claim of ours that was thought lost, and renewals.
_TRIES = 4
_RELEASE_SECONDS = 0.5
log = logging.getLogger(__name__)
_Outcome = Literal["written", "stored", "deleted", "lost"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A session as it was read, before its next turn.

    Attributes:
        record: as it was then, or a new one.
        version: of its document; 0 where there is none; None where the store could not be asked.
        trouble: why it could not.
        before: turns that the session had when the request came.
        made: whether the turn makes the session.
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


class Turn:
    """Entered, it has claimed the session; left, it has freed it. One for each run of a request.

    While it runs, the claim is renewed. Whatever the clocks say, only the holder of the document's
    version writes: who has lost it is refused.

    Args:
        desk: the process's.
        opened: the session.
        request_id: whose turn it is.

    Raises:
        SessionConflict: on entry, another request has written the session, or writes it.
        StoreUnavailable: on entry, the store does not answer.
    """

    def __init__(self, desk: Desk, opened: Opened, request_id: str) -> None:
        self._desk = desk
        self._opened = opened
        self._request_id = request_id
        # Two requests may have one name: their clients choose it.
        self._writer = f"{request_id}/{uuid.uuid4().hex[:16]}"
        self._key = records.key(opened.record.owner, opened.record.id)
        self._version = opened.version
        self._trouble = opened.trouble
        self._held = self._asked = self._committed = self._lost = self._deleted = False
        self._written = time.monotonic()
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def record(self) -> store_pb2.SessionRecord:
        """The session before this turn; not to be changed."""
        return self._opened.record

    @property
    def before(self) -> int:
        return self._opened.before

    async def __aenter__(self) -> Self:
        if self._opened.committed or self._opened.gone or self._version is None:
            return self
        try:
            await self._claim()
        except StoreUnavailable as failure:
            # It may have been written all the same.
            self._end()
            if not self._opened.forgiving:
                raise
            self._version, self._trouble = None, failure.message
        except BaseException:
            self._end()
            raise
        else:
            self._keeper = asyncio.create_task(self._keep(), name="session-claim")
        return self

    async def _claim(self) -> None:
        record = self._claimed()
        for _ in range(_TRIES):
            try:
                self._asked = True
                await self._write(record)
            except VersionConflict:
                self._asked = False
                await self._reread()
            else:
                self._held = True
                return
        raise self._conflict()

    def _claimed(self) -> store_pb2.SessionRecord:
        record = records.copy(self.record)
        records.claim(record, self._writer, self._desk.clock(), self._desk.limits)
        return record

    async def _write(self, record: store_pb2.SessionRecord) -> None:
        """Raises VersionConflict."""
        # A session that is in use does not end under it, however short its time.
        least = 2 * self._desk.limits.claim if record.writer else 0.0
        ttl, began = max(record.ttl_seconds, least), time.monotonic()
        value = record.SerializeToString()
        self._version = await self._desk.store.put(self._key, value, ttl=ttl, expect=self._version)
        self._written = began

    async def _reread(self) -> None:
        """The document has changed since it was opened, but maybe not what it says."""
        document = await self._desk.store.get(self._key)
        found, opened = records.read(document), self._opened
        own = found is not None and records.request_of(found.writer) == self._request_id
        if found is not None and not (opened.resumed and own):
            self._desk.refuse_writer(found)
        if found is None and not opened.made:
            raise self._conflict()
        if found is not None and not _as_it_was(found, self.record):
            raise self._conflict()
        self._version = 0 if document is None else document.version

    def _conflict(self) -> SessionConflict:
        return SessionConflict(
            f"another request has written session '{self.record.id}' in the meantime, and this one"
            " does not belong to it; read the session and send the turn again",
            param="session_id",
        )

    def check(self) -> None:
        """Raises SessionConflict: the session was taken over, so that the rest is in vain."""
        if self._lost:
            raise self._conflict()

    async def _keep(self) -> None:
        """Renews the claim until it is cancelled, or there is nothing to renew."""
        await self._index()
        while True:
            await asyncio.sleep(self._desk.limits.renewal)
            try:
                async with self._lock:
                    if self._committed:
                        return
                    outcome = await self._put(self._claimed(), None)
            except StoreUnavailable as failure:
                log.debug("the claim on %s was not renewed: %s", self._key, failure.message)
                continue
            if outcome != "written":
                # "stored" is for the commit to tell: the same request may run elsewhere, too.
                self._lost, self._deleted = outcome == "lost", outcome == "deleted"
                return

    async def commit(
        self, turn: gateway_pb2.SessionTurn, kind: str, kv_holder: str = ""
    ) -> gateway_pb2.SessionState:
        """Stores the turn and frees the session; then says whether it is stored, and if not, why.

        Waits for a few calls of the store, each of which is bounded by the store.

        Args:
            turn: with the name of this request.
            kind: of session: "chat", "text" or "token_ids".
            kv_holder: host:port of who has its keys and values; empty where that is not known.

        Raises:
            SessionConflict: the session was taken over.
        """
        if self._opened.committed:
            return self._state()
        if self._opened.gone:
            return self._state("the session is there no more")
        record = records.copy(self.record)
        record.turns.append(turn)
        record.kind, record.kv_holder, record.kv_incarnation = kind, kv_holder, ""
        record.prefix.length = turn.usage.prompt_tokens + turn.usage.completion_tokens
        records.release(record, self._desk.clock())
        async with self._lock:
            outcome: _Outcome | StoreUnavailable = await self._stored(record, turn)
        if isinstance(outcome, StoreUnavailable):
            return self._state(self._not_known(outcome))
        if outcome == "deleted":
            return self._state("the session was deleted while the turn ran")
        if outcome == "lost":
            if self._held:
                raise self._conflict()
            return self._state(f"{self._trouble}; and the session was begun by another request")
        return self._state()

    async def _stored(
        self, record: store_pb2.SessionRecord, turn: gateway_pb2.SessionTurn
    ) -> _Outcome | StoreUnavailable:
        outcome: _Outcome | StoreUnavailable = "deleted" if self._deleted else "lost"
        if self._deleted or self._lost:
            return outcome
        # A second time after a first that may have been written or not.
        for _ in range(2 if self._held else 1):
            try:
                outcome = await self._put(record, turn)
            except StoreUnavailable as failure:
                outcome = failure
            else:
                self._committed = outcome in {"written", "stored"}
                break
        return outcome

    def _not_known(self, failure: StoreUnavailable) -> str:
        if not self._held:
            return f"served without memory, since the store did not answer: {self._trouble}"
        return f"the store did not confirm the turn, so it may be lost: {failure.message}"

    def _state(self, trouble: str = "") -> gateway_pb2.SessionState:
        return gateway_pb2.SessionState(
            id=self.record.id, turns=self.before + 1, stored=not trouble, detail=trouble
        )

    async def _put(
        self, record: store_pb2.SessionRecord, turn: gateway_pb2.SessionTurn | None
    ) -> _Outcome:
        """Writes the record, unless the document is no longer this turn's to write.

        Args:
            turn: the one that the record adds.
        """
        if time.monotonic() - self._written > self._desk.limits.claim:
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

    async def _adopt(self, turn: gateway_pb2.SessionTurn | None) -> _Outcome | None:
        """Finds the version to write over, or why there is none."""
        document = await self._desk.store.get(self._key)
        found = records.read(document)
        if document is None:
            # A store that came back empty gets the session back: this turn knows all of it.
            self._version = 0
            return None
        if found is None:
            if self._held:
                return "deleted"
            self._version = document.version
            return None
        free = not self._held and _as_it_was(found, self.record)
        claimed = records.claim_left(found, self._desk.clock(), self._desk.limits)
        if found.writer == self._writer or (free and not claimed):
            self._version = document.version
            return None
        if len(found.turns) > self.before:
            there = found.turns[self.before]
            if there.request_id == self._request_id and (turn is None or _same(there, turn)):
                return "stored"
        return "lost"

    async def __aexit__(self, *_: object) -> None:
        task = self._end()
        if not self._committed:
            # So that the client's next try finds the session free; but it holds up nothing.
            await asyncio.wait({task}, timeout=_RELEASE_SECONDS)

    def _end(self) -> asyncio.Task[None]:
        return self._desk.behind(self._ended())

    async def _ended(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        try:
            if self._committed:
                await self._index()
            elif self._asked and not self._lost:
                await self._release()
        except StoreUnavailable as failure:
            log.debug("the claim on %s lapses, it was not freed: %s", self._key, failure.message)

    async def _release(self) -> None:
        """Everything as it was before, if the document is still this turn's."""
        store = self._desk.store
        document = await store.get(self._key)
        found = records.read(document)
        if document is None or found is None or found.writer != self._writer:
            return
        # Of a session that this turn made nothing is left.
        made = self._opened.made
        value, ttl = records.TOMBSTONE, records.TOMBSTONE_SECONDS
        if not made:
            record = records.copy(self.record)
            records.release(record, self._desk.clock())
            value, ttl = record.SerializeToString(), record.ttl_seconds
        # On a conflict somebody else has it.
        with contextlib.suppress(VersionConflict):
            await store.put(self._key, value, ttl=ttl, expect=document.version)
            if made:
                await store.index_remove(records.index(self.record.owner), self.record.id)

    async def _index(self) -> None:
        record = self.record
        ttl = max(record.ttl_seconds, 2 * self._desk.limits.claim)
        with contextlib.suppress(StoreUnavailable):
            await self._desk.store.index_add(records.index(record.owner), record.id, ttl=ttl)


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
