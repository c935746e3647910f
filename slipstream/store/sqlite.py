"""The session store in a file: the gateways of one host share it, and it survives them.

SQLite in WAL mode: a writer that is killed leaves no half of a transaction, readers never wait for
a writer. All calls run on one thread, so that the event loop never waits for the disk.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from slipstream.store import sqlite_index, sqlite_log
from slipstream.store.interface import Append, AppendResult, Document, LogView, VersionConflict
from slipstream.store.sqlite_thread import SqliteThread


class SqliteStore:
    """Implements `Store`. Time is the host's wall clock, so that it goes on over a restart.

    A call that is cancelled, as by a deadline, writes nothing if it had not got the file's lock by
    then; otherwise it is written though nobody hears of it, as with a store over a network.

    Args:
        path: absolute; made with mode 0600, its folder too, where they are not there.
        busy_timeout: seconds to wait for other processes' transactions.

    Raises:
        ConfigurationError: it cannot be made, is no database of ours, or of a newer Slipstream.
    """

    def __init__(
        self, path: Path, *, busy_timeout: float = 1.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._thread = SqliteThread(path, busy_timeout, clock)

    async def get(self, key: str) -> Document | None:
        def work(db: sqlite3.Connection) -> Document | None:
            row = db.execute(
                "SELECT value, version FROM document WHERE key = ? AND expires > ?",
                (key, self._clock()),
            ).fetchone()
            return None if row is None else Document(*row)

        return await self._thread.read(work)

    async def put(self, key: str, value: bytes, *, ttl: float, expect: int | None = None) -> int:
        def work(db: sqlite3.Connection) -> int:
            version = self._expect(db, key, expect) + 1
            _put(db, key, version, self._clock() + ttl, value)
            return version

        return await self._thread.write(work)

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            current = self._expect(db, key, expect)
            db.execute("DELETE FROM document WHERE key = ?", (key,))
            return current > 0

        return await self._thread.write(work)

    def _expect(self, db: sqlite3.Connection, key: str, expect: int | None) -> int:
        row = db.execute(
            "SELECT version FROM document WHERE key = ? AND expires > ?", (key, self._clock())
        ).fetchone()
        current = 0 if row is None else int(row[0])
        if expect is not None and current != expect:
            raise VersionConflict(current)
        return current

    async def log_open(self, log: str, fence: int, *, ttl: float) -> LogView:
        return await self._thread.write(
            lambda db: sqlite_log.take(db, log, fence, ttl, self._clock())
        )

    async def log_append(self, items: Sequence[Append]) -> list[AppendResult]:
        """All of them in one transaction."""
        return await self._thread.write(
            lambda db: [sqlite_log.append(db, item, self._clock()) for item in items]
        )

    async def log_read(self, log: str, start: int = 0) -> LogView | None:
        return await self._thread.read(lambda db: sqlite_log.read(db, log, start, self._clock()))

    async def log_delete(self, log: str) -> None:
        await self._thread.write(lambda db: sqlite_log.delete(db, log))

    async def index_add(
        self, index: str, member: str, *, ttl: float, most: int | None = None
    ) -> None:
        await self._thread.write(
            lambda db: sqlite_index.add(db, index, member, ttl, most, self._clock())
        )

    async def index_remove(self, index: str, member: str) -> None:
        await self._thread.write(lambda db: sqlite_index.delete(db, [(index, member)]))

    async def index_list(self, index: str, after: str = "", limit: int = 100) -> list[str]:
        return await self._thread.read(
            lambda db: sqlite_index.listed(db, index, after, limit, self._clock())
        )

    async def ping(self) -> None:
        """Also finds a file that was removed, or replaced, under us."""
        await self._thread.reopen_if_replaced()
        # No key is empty, and nobody sees what expired in 1970.
        await self._thread.write(lambda db: _put(db, "", 1, 0.0, b""))

    async def close(self) -> None:
        await self._thread.close()


def _put(db: sqlite3.Connection, key: str, version: int, expires: float, value: bytes) -> None:
    db.execute(
        "INSERT OR REPLACE INTO document (key, version, expires, value) VALUES (?, ?, ?, ?)",
        (key, version, expires, value),
    )
