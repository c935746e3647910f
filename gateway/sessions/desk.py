"""What sessions and their turns work with."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.sessions import records
from gateway.sessions.records import Limits
from slipstream.core.errors import SessionConflict, TooManySessions
from slipstream.store import IndexFull, Store
from slipstream.wire.proto import store_pb2

_CLOSE_SECONDS = 1.0
# More than a store can hold.
_ANY = 2**53


class Desk:
    """One for the process.

    Args:
        store: bounds its own waits.
        limits: of each session.
        clock: seconds since the epoch.
        monotonic: seconds of a clock that nobody sets.

    Attributes:
        refused: sessions that found no room.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.limits = limits
        self.clock = clock
        self.monotonic = monotonic
        self.refused: Counter[str] = Counter(sessions=0)
        self._tasks: set[asyncio.Task[None]] = set()

    def behind(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that goes on when whoever waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Lets what is still being written end, for a second."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()

    async def enter(self, record: store_pb2.SessionRecord, ttl: float) -> None:
        """Takes a place among its owner's sessions, for so many seconds at least. Comes before the
        session is written, so that there are never more of them than places.

        Raises:
            TooManySessions: all are taken.
        """
        most, index = self.limits.most, records.index(record.owner)
        try:
            await self.store.index_add(index, record.id, ttl=ttl, most=most or _ANY)
        except IndexFull as full:
            self.refused["sessions"] += 1
            raise TooManySessions(
                f"there are {full.members} sessions, and one API key may have {most}"
                f" (--max-sessions-per-key), so that '{record.id}' cannot begin: delete one that is"
                " not needed any more (DELETE /v1/sessions/ID), or wait until one has expired; a"
                " shorter ttl lets them expire sooner",
                param="session_id",
            ) from full

    def refuse_writer(self, record: store_pb2.SessionRecord) -> None:
        """Raises SessionConflict: a request is writing the session."""
        left = records.claim_left(record, self.clock(), self.limits)
        if left:
            raise SessionConflict(
                f"session '{record.id}' is being written by request"
                f" {records.request_of(record.writer)}; send this turn when that has ended (it"
                f" counts as lost {self.limits.claim:g} s after its last sign of life), or fork the"
                " session",
                param="session_id",
                retry_after=left,
            )
