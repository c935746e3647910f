"""Which server a request goes to: the one there is, a master by Sentinels, nodes of a Cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Protocol, TypeVar

from redis import exceptions

from slipstream.store.redis_link import Link, Outcome
from slipstream.store.redis_scripts import PING_KEY, Request
from slipstream.store.redis_trouble import NONSENSE, TROUBLE, has_moved
from slipstream.store.redis_url import Address, RedisUrl

T = TypeVar("T")


class Servers(Protocol):
    async def run(self, requests: Sequence[Request]) -> list[Outcome]:
        """An answer for each, or why there is none. Raises nothing of TROUBLE."""

    async def ping_keys(self) -> list[str]:
        """A key on each server that has to work. May raise TROUBLE."""

    async def close(self) -> None: ...


class OneServer:
    """Implements `Servers`."""

    def __init__(self, url: RedisUrl, timeout: float) -> None:
        self._link = Link(url.addresses[0], url.connection, url.tls, timeout)

    async def run(self, requests: Sequence[Request]) -> list[Outcome]:
        try:
            return await self._link.run(requests)
        except TROUBLE as failure:
            return [failure] * len(requests)

    async def ping_keys(self) -> list[str]:
        return [PING_KEY]

    async def close(self) -> None:
        await self._link.close()


class SentinelServers:
    """Implements `Servers`: the master that Sentinels name, asked for again when it may be another.

    All Sentinels are asked at once, so that one that is gone costs no time; who they name is taken
    only if it says itself that it is a master.
    """

    def __init__(self, url: RedisUrl, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._sentinels = [
            Link(address, url.sentinel, url.tls, timeout) for address in url.addresses
        ]
        self._master: Link | None = None
        self._finding = asyncio.Lock()

    async def run(self, requests: Sequence[Request]) -> list[Outcome]:
        link = None
        try:
            link = await self._found()
            outcomes = await link.run(requests)
        except TROUBLE as failure:
            outcomes = [failure] * len(requests)
        except asyncio.CancelledError:
            # Too slow for the caller: as a master is that hangs.
            await self._forget(link)
            raise
        if any(isinstance(found, Exception) and has_moved(found) for found in outcomes):
            await self._forget(link)
        return outcomes

    async def ping_keys(self) -> list[str]:
        return [PING_KEY]

    async def _forget(self, link: Link | None) -> None:
        if link is not None and link is self._master:
            self._master = None
            await link.close()

    async def _found(self) -> Link:
        async with self._finding:
            if self._master is None:
                address = await first(self._named_by(sentinel) for sentinel in self._sentinels)
                self._master = self._link(address)
            return self._master

    async def _named_by(self, sentinel: Link) -> Address:
        name = self._url.master
        found = await sentinel.ask(b"SENTINEL", b"get-master-addr-by-name", name.encode())
        if not found:
            raise exceptions.ConnectionError(f"Sentinel knows no master {name!r}")
        address: Address = found[0].decode(), int(found[1])
        link = self._link(address)
        try:
            (role, *_) = await link.ask(b"ROLE")
        finally:
            await link.close()
        if role != b"master":
            raise exceptions.ConnectionError(f"{address[0]}:{address[1]} is no master now")
        return address

    def _link(self, address: Address) -> Link:
        return Link(address, self._url.connection, self._url.tls, self._timeout)

    async def close(self) -> None:
        await self._forget(self._master)
        for link in self._sentinels:
            await link.close()


async def first(attempts: Iterable[Awaitable[T]]) -> T:
    """The result of the first that has one; the others are cancelled.

    Raises:
        ConnectionError: (redis-py's) none has; it says why.
    """
    tasks = {asyncio.ensure_future(attempt) for attempt in attempts}
    reasons: list[str] = []
    try:
        for done in asyncio.as_completed(tasks):
            try:
                return await done
            except (*TROUBLE, *NONSENSE) as failure:
                reasons.append(str(failure))
    finally:
        for task in tasks:
            task.cancel()
    raise exceptions.ConnectionError("; ".join(sorted(set(reasons))))
