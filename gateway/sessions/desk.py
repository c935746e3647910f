"""What sessions and their turns work with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.sessions import records
from gateway.sessions.records import Limits
from slipstream.core.errors import SessionConflict
from slipstream.store import Store
from slipstream.wire.proto import store_pb2

_CLOSE_SECONDS = 1.0


class Desk:
    """One for the process.

    Args:
        store: bounds its own waits.
        limits: of each session.
        clock: seconds since the epoch.
        monotonic: seconds of a clock that nobody sets.
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
