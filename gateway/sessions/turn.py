"""One turn of a session: while it runs others are kept out; then it is stored, and told so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Self

from gateway.sessions import records
from gateway.sessions.claim import Claim, Opened, Outcome
from gateway.sessions.desk import Desk
from slipstream.core.errors import SlipstreamError, StoreUnavailable, TooManySessions
from slipstream.wire.proto import gateway_pb2, store_pb2

_RELEASE_SECONDS = 0.5
log = logging.getLogger(__name__)


class Turn:
    """Entered, it has claimed the session; left, it has freed it. One for each run of a request.

    Args:
        desk: the process's.
        opened: the session.
        request_id: whose turn it is.

    Raises:
        SessionConflict: on entry, another request has written the session, or writes it.
        StoreUnavailable: on entry, the store does not answer.
        TooManySessions: on entry, it would make one more than may be. Where the request was begun
            before, its client has been promised the answer, and gets that without memory.
    """

    def __init__(self, desk: Desk, opened: Opened, request_id: str) -> None:
        self._desk = desk
        self._opened = opened
        self._claim = Claim(desk, opened, request_id)
        self._trouble = opened.trouble
        self._full: TooManySessions | None = None
        # How a renewal or the commit ended, if not in "written" or an error.
        self._over: Outcome | None = None
        self._committed = False
        self._lock = asyncio.Lock()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def record(self) -> store_pb2.SessionRecord:
        """The session before this turn; not to be changed."""
        return self._opened.record

    @property
    def before(self) -> int:
        """How many turns the session had when the request came."""
        return self._opened.before

    async def __aenter__(self) -> Self:
        opened = self._opened
        if opened.committed or opened.gone or opened.version is None:
            return self
        try:
            await self._claim.take()
        except BaseException as failure:
            # It may have been written all the same.
            self._end()
            if opened.resumed and isinstance(failure, TooManySessions):
                self._full = failure
            elif opened.forgiving and isinstance(failure, StoreUnavailable):
                self._trouble = failure.message
            else:
                raise
        else:
            self._keeper = asyncio.create_task(self._keep(), name="session-claim")
        return self

    def rename(self, request_id: str) -> None:
        """The request is called so from now on."""
        self._claim.request_id = request_id

    def check(self) -> None:
        """Raises SessionConflict: the session was taken over, so that the rest is in vain."""
        if self._over == "lost":
            raise self._claim.conflict()

    async def _keep(self) -> None:
        """Renews the claim, and long before its end the session's place in the list, until it is
        cancelled, or there is nothing to renew."""
        due = self._desk.monotonic()
        while self._over is None:
            if self._desk.monotonic() >= due:
                with contextlib.suppress(StoreUnavailable):
                    await self._claim.index()
                    due = self._desk.monotonic() + self._claim.lifetime / 2
            await asyncio.sleep(self._desk.limits.renewal)
            try:
                async with self._lock:
                    if self._committed:
                        return
                    outcome = await self._claim.put(self._claim.record())
            except SlipstreamError as failure:
                log.debug("the claim on %s was not renewed: %s", self.record.id, failure)
            else:
                self._over = None if outcome == "written" else outcome

    async def commit(
        self, turn: gateway_pb2.SessionTurn, kind: str, kv_holder: str = ""
    ) -> gateway_pb2.SessionState:
        """Stores the turn and frees the session; then says whether it is stored, and if not, why.

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
        if self._full is not None:
            return self._state(f"served without memory: {self._full.message}")
        record = records.copy(self.record)
        record.turns.append(turn)
        record.kind, record.kv_holder, record.kv_incarnation = kind, kv_holder, ""
        record.prefix.length = turn.usage.prompt_tokens + turn.usage.completion_tokens
        records.release(record, self._desk.clock())
        async with self._lock:
            outcome = await self._store(record, turn)
        if outcome in {"written", "stored"}:
            self._committed = True
            return self._state()
        if outcome == "deleted":
            return self._state("the session was deleted while the turn ran")
        if outcome == "lost" and self._claim.held:
            raise self._claim.conflict()
        if isinstance(outcome, TooManySessions):
            return self._state(f"served without memory: {outcome.message}")
        if not self._claim.held:
            return self._state(f"served without memory, as the store failed: {self._trouble}")
        return self._state(f"the store did not confirm the turn, it may be lost: {outcome}")

    async def _store(
        self, record: store_pb2.SessionRecord, turn: gateway_pb2.SessionTurn
    ) -> Outcome | SlipstreamError:
        if self._over in {"deleted", "lost"}:
            return self._over
        outcome: Outcome | SlipstreamError = "lost"
        # A second time after a first that may have been written or not.
        for _ in range(2 if self._claim.held else 1):
            try:
                return await self._claim.put(record, turn)
            except SlipstreamError as failure:
                outcome = failure
        return outcome

    def _state(self, trouble: str = "") -> gateway_pb2.SessionState:
        return gateway_pb2.SessionState(
            id=self.record.id, turns=self.before + 1, stored=not trouble, detail=trouble
        )

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
            await (self._claim.index() if self._committed else self._claim.free())
        except SlipstreamError as failure:
            log.debug("the claim on %s lapses by itself: %s", self.record.id, failure)
