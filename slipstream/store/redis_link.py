"""Connections to one Redis server: a few, each used by one call at a time.

redis-py's connections speak the protocol; its pools and clients are not used, since they retry,
wait and refresh by their own clocks. Here a call does what its caller asked, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from slipstream.store.redis_scripts import Damaged, Request
from slipstream.store.redis_trouble import NONSENSE
from slipstream.store.redis_url import Address

# A call holds one for about a millisecond, and those that come meanwhile take turns.
_MOST = 16

# An answer, or why there is none.
Outcome = list[bytes] | Exception


class Link:
    """
    Args:
        settings: arguments of redis-py's connection.
        timeout: seconds that connecting, sending or one answer may take.
    """

    def __init__(
        self, address: Address, settings: Mapping[str, Any], tls: bool, timeout: float
    ) -> None:
        self.address = address
        self._kind = SSLConnection if tls else Connection
        self._settings = {
            **settings,
            "host": address[0],
            "port": address[1],
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        self._slots = asyncio.Semaphore(_MOST)
        self._free: list[Connection] = []
        self._ssl: Any = None
        self._closed = False

    async def run(self, requests: Sequence[Request], *, asking: bool = False) -> list[Outcome]:
        """All in one round trip, and a second one with those scripts that the server forgot.

        Raises whatever means that no request has an answer.
        """
        outcomes = await self._run(requests, asking=asking, whole=False)
        again = [i for i, found in enumerate(outcomes) if isinstance(found, NoScriptError)]
        if again:
            repeated = [requests[i] for i in again]
            answers = await self._run(repeated, asking=asking, whole=True)
            for i, found in zip(again, answers, strict=True):
                outcomes[i] = found
        return outcomes

    async def _run(
        self, requests: Sequence[Request], *, asking: bool, whole: bool
    ) -> list[Outcome]:
        commands: list[Sequence[bytes]] = []
        for one in requests:
            commands += [[b"ASKING"]] * asking
            commands.append(one.command(whole=whole))
        outcomes: list[Outcome] = []
        async with self._connection() as connection:
            replies = await _talk(connection, commands)
            for one, reply in zip(requests, replies[asking :: 1 + asking], strict=True):
                try:
                    outcomes.append(reply if isinstance(reply, Exception) else one.opened(reply))
                except Damaged as failure:
                    outcomes.append(failure)
                    # Who knows what it says next.
                    await connection.disconnect(nowait=True)
        return outcomes

    async def ask(self, *command: bytes) -> Any:
        """One plain command. Raises ResponseError for what Redis refuses."""
        async with self._connection() as connection:
            (reply,) = await _talk(connection, [command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._slots:
            connection = self._free.pop() if self._free else self._make()
            try:
                await _ready(connection)
                yield connection
            except BaseException as failure:
                # Also where the call was given up: the answer would be taken for the next one's.
                await connection.disconnect(nowait=True)
                if isinstance(failure, NONSENSE):
                    raise Damaged(f"an answer that cannot be read: {failure}") from failure
                raise
            if self._closed:
                await connection.disconnect(nowait=True)
            else:
                self._free.append(connection)

    def _make(self) -> Connection:
        connection = self._kind(**self._settings)
        if isinstance(connection, SSLConnection):
            # To read the host's certificates takes milliseconds: once is enough.
            self._ssl = self._ssl or connection.ssl_context
            connection.ssl_context = self._ssl
        return connection

    async def close(self) -> None:
        """Calls in progress go on; their connections are closed after them."""
        self._closed = True
        free, self._free = self._free, []
        for connection in free:
            await connection.disconnect(nowait=True)


async def _ready(connection: Connection) -> None:
    if connection.is_connected:
        # It lay idle. If there is something to read, the server has closed it, or is out of step.
        look = getattr(connection, "can_read", None) or connection.can_read_destructive
        try:
            stale = await look()
        except (OSError, RedisError):
            stale = True
        if not stale:
            return
        await connection.disconnect(nowait=True)
    await connection.connect()  # type: ignore[no-untyped-call]


async def _talk(connection: Connection, commands: Sequence[Sequence[bytes]]) -> list[Any]:
    """A reply for each command; refusals are among them as exceptions."""
    packed = b"".join(map(_packed, commands))
    await connection.send_packed_command([packed], check_health=False)
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(await connection.read_response())
        except ResponseError as refusal:
            replies.append(refusal)
    return replies


def _packed(command: Sequence[bytes]) -> bytes:
    parts = [b"$%d\r\n%b\r\n" % (len(part), part) for part in command]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))
