"""The one thread that touches the session store's file, and its connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from slipstream.core.errors import ConfigurationError, StoreUnavailable
from slipstream.store.sqlite_schema import open_file, purge

log = logging.getLogger(__name__)

# Calls that wait for the thread; more would only wait behind what has timed out long ago.
_MOST_PENDING = 512
_PURGE_SECONDS = 1.0

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


@dataclass(slots=True)
class _Job:
    """A write on its way to the file. Who gave up on it wants it not to be done."""

    abandoned: bool = False


class _Abandoned(Exception):
    """Nobody waits for this write any more; nothing of it has been written."""


class SqliteThread:
    """Runs transactions one after the other, off the event loop.

    A call that is cancelled while it waits for the thread never runs; a write that is cancelled
    while it waits for other processes writes nothing; one that is cancelled later is written.

    Args:
        busy_timeout: seconds to wait for other processes' transactions.
        clock: seconds; by it things expire.

    Raises:
        ConfigurationError: the file cannot be made, is no database of ours, or of a newer schema.
    """

    def __init__(self, path: Path, busy_timeout: float, clock: Callable[[], float]) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._next_purge = 0.0
        self._slots = threading.Semaphore(_MOST_PENDING)
        self._thread = ThreadPoolExecutor(1, "session-store")
        try:
            self._thread.submit(self._connected).result()
        except StoreUnavailable as failure:
            # It may come to itself: every call tries again.
            log.warning("%s", failure.message)
        except ConfigurationError:
            self._thread.shutdown()
            raise

    async def read(self, work: Work[T]) -> T:
        def run() -> T:
            with self._transaction("BEGIN") as db:
                return work(db)

        return await self._call(run)

    async def write(self, work: Work[T]) -> T:
        job = _Job()

        def run() -> T:
            # With IMMEDIATE the wait for other writers comes first, before anything is read.
            with self._transaction("BEGIN IMMEDIATE") as db:
                if job.abandoned:
                    raise _Abandoned
                self._purge_sometimes(db)
                return work(db)

        try:
            return await self._call(run)
        except asyncio.CancelledError:
            job.abandoned = True
            raise

    async def reopen_if_replaced(self) -> None:
        """SQLite goes on with a file that was removed, alone; others have the new one."""

        def run() -> None:
            if self._connection is not None and _inode(self._path) != self._inode:
                self._disconnect()

        await self._call(run)

    async def close(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._call(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _call(self, run: Callable[[], T]) -> T:
        if not self._slots.acquire(blocking=False):
            raise StoreUnavailable(f"{_MOST_PENDING} calls wait for the session store {self._path}")
        try:
            future: Future[T] = self._thread.submit(run)
        except RuntimeError as failure:
            self._slots.release()
            raise StoreUnavailable("the session store is closed") from failure
        future.add_done_callback(lambda _: self._slots.release())
        return await asyncio.wrap_future(future)

    # What follows runs on the thread.

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        try:
            db = self._connected()
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except sqlite3.DatabaseError as failure:
            # Whatever it was, a new connection has it behind; waiting for a lock is no fault of it.
            if "locked" not in str(failure):
                self._disconnect()
            raise StoreUnavailable(f"the session store {self._path}: {failure}") from failure
        except ConfigurationError as failure:
            # It was usable when it was opened first, and may be again.
            raise StoreUnavailable(failure.message) from failure

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_file(self._path, self._busy_timeout)
            self._inode = _inode(self._path)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _purge_sometimes(self, db: sqlite3.Connection) -> None:
        now = self._clock()
        # By a clock that was set back, it is time again, too.
        if self._next_purge - _PURGE_SECONDS <= now < self._next_purge:
            return
        more = purge(db, now)
        self._next_purge = now if more else now + _PURGE_SECONDS


def _inode(path: Path) -> int:
    """0 where there is no file."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
