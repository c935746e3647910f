"""What lies in a session store: keys and bytes of Redis, rows and size of an SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slipstream.bench.reliability.fleet import sqlite_url
from slipstream.bench.reliability.redis import Redis, running_redis
from slipstream.core.errors import ConfigurationError

_BUSY_SECONDS = 10.0


class Sediment(Protocol):
    """Looks into a store from outside. `url` is as `--session-store` takes it."""

    @property
    def url(self) -> str: ...

    async def size(self) -> int:
        """In bytes."""

    async def keys(self) -> int:
        """How many documents, logs, entries of logs and the like there are."""

    async def kinds(self) -> dict[str, int]:
        """The same by kind."""


@dataclass(frozen=True, slots=True)
class RedisSediment:
    """Of a server; raises what `Redis.ask` raises."""

    redis: Redis

    @property
    def url(self) -> str:
        return self.redis.url

    async def size(self) -> int:
        return await self.redis.used_memory()

    async def keys(self) -> int:
        # But for the one that the gateway's probes write.
        return sum((await self.kinds()).values())

    async def kinds(self) -> dict[str, int]:
        found = await self.redis.kinds()
        return {kind: count for kind, count in found.items() if kind != "ping"}


@dataclass(frozen=True, slots=True)
class SqliteSediment:
    """Of a file and what SQLite keeps beside it, read by a connection of its own."""

    path: Path

    @property
    def url(self) -> str:
        return sqlite_url(self.path.parent)

    async def size(self) -> int:
        files = self.path.parent.glob(f"{self.path.name}*")
        return sum(each.stat().st_size for each in files)

    async def keys(self) -> int:
        return sum((await self.kinds()).values())

    async def kinds(self) -> dict[str, int]:
        return await asyncio.to_thread(rows, self.path)


def rows(path: Path) -> dict[str, int]:
    """How many rows the tables of a file have; none where there is no file."""
    if not path.exists():
        return {}
    address = f"{path.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS)) as link:
        found = link.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        names = [name for (name,) in found if not name.startswith("sqlite_")]
        return {name: _count(link, name) for name in sorted(names)}


def _count(link: sqlite3.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    # But for the document without a name, which the gateway's probes write.
    named = " WHERE key != ''" if table == "document" else ""
    query = f'SELECT count(*) FROM "{quoted}"{named}'  # noqa: S608 its own name
    [(count,)] = link.execute(query).fetchall()
    return int(count)


@asynccontextmanager
async def sediment(store: str, folder: Path, logs: Path) -> AsyncIterator[Sediment]:
    """A new, empty store: `redis` or `sqlite`.

    Raises:
        ConfigurationError: it is neither, or Redis cannot be started.
        DeadlineExceeded: Redis did not answer in time.
    """
    if store == "redis":
        async with running_redis(logs) as redis:
            yield RedisSediment(redis)
    elif store == "sqlite":
        yield SqliteSediment(folder / "sessions.db")
    else:
        raise ConfigurationError(f"--stores takes redis and sqlite, got {store!r}")
