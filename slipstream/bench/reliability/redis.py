"""What a Redis server of the benchmark's own says of itself."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slipstream.bench.redis_server import RedisServer

_SCANNED = "1000"


@dataclass(frozen=True, slots=True)
class Redis:
    """A running server. All of its methods raise as `RedisServer.command` does."""

    server: RedisServer

    @property
    def url(self) -> str:
        """As `--session-store` takes it."""
        return self.server.url

    async def used_memory(self) -> int:
        """In bytes."""
        lines = (await self._ask("INFO", "memory")).decode().splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(found["used_memory"])

    async def size(self) -> int:
        """Keys, expired ones that are still held among them."""
        return int(await self._ask("DBSIZE"))

    async def kinds(self) -> dict[str, int]:
        """How many keys there are of each kind."""
        found: Counter[str] = Counter()
        cursor = b"0"
        while True:
            cursor, keys = await self._ask("SCAN", cursor, "COUNT", _SCANNED)
            found.update(kind_of(key.decode()) for key in keys)
            if cursor == b"0":
                return dict(sorted(found.items()))

    async def _ask(self, *words: str | bytes) -> Any:
        return await asyncio.to_thread(self.server.command, *words)


def kind_of(key: str) -> str:
    """`session` of `slipstream:doc:session/ada/x`, `sessions` of `slipstream:index:{sessions/ada}`:
    the word before the first slash, without what stands in front of it."""
    head = key.partition("/")[0]
    return head.replace("{", ":").rpartition(":")[2] or head


@asynccontextmanager
async def running_redis(logs: Path) -> AsyncIterator[Redis]:
    """A server that keeps nothing on disk; it ends with the context.

    Raises:
        ConfigurationError: there is no program, or it ended at once.
        DeadlineExceeded: it did not answer in time.
    """
    server = RedisServer(logs)
    try:
        # In this thread, with which it ends; it takes some 50 ms.
        server.start()
        yield Redis(server)
    finally:
        server.stop()
