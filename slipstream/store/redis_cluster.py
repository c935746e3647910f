"""Nodes of a Redis Cluster: each request goes to the node that has its slot."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from redis import exceptions
from redis.crc import key_slot

from slipstream.store.redis_link import Link, Outcome
from slipstream.store.redis_scripts import PING_KEY, Damaged, Request
from slipstream.store.redis_servers import first
from slipstream.store.redis_trouble import TROUBLE, has_moved
from slipstream.store.redis_url import Address, RedisUrl

_SLOTS = 16384
# A request is sent on so often while slots move.
_REDIRECTIONS = 3


class ClusterServers:
    """Implements `Servers`.

    The map of slots is asked for from all known nodes at once, first and whenever it may be out of
    date; what a node says about a slot (MOVED) is taken at its word until then.
    """

    def __init__(self, url: RedisUrl, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._links: dict[Address, Link] = {}
        self._nodes = set(url.addresses)
        self._owners: list[Address | None] = [None] * _SLOTS
        self._known = False
        self._learning = asyncio.Lock()

    async def run(self, requests: Sequence[Request]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            await self._learn()
            outcomes = await self._everywhere(requests)
        except TROUBLE as failure:
            outcomes = [failure] * len(requests)
        except asyncio.CancelledError:
            # Too slow for the caller: as a node is that hangs, and may have been replaced.
            self._known = False
            raise
        if any(isinstance(found, Exception) and has_moved(found) for found in outcomes):
            self._known = False
        return outcomes

    async def _everywhere(self, requests: Sequence[Request]) -> list[Outcome]:
        outcomes: list[Outcome] = [
            exceptions.ClusterDownError("its slots move all the time")
        ] * len(requests)
        left: dict[tuple[Address, bool], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            left[self._owner(key_slot(request.keys[0])), False].append(i)
        for _ in range(1 + _REDIRECTIONS):
            parts = await asyncio.gather(
                *(
                    self._one(address, [requests[i] for i in which], asking)
                    for (address, asking), which in left.items()
                )
            )
            found = [
                (address, i, outcome)
                for ((address, _), which), part in zip(left.items(), parts, strict=True)
                for i, outcome in zip(which, part, strict=True)
            ]
            left = defaultdict(list)
            for address, i, outcome in found:
                outcomes[i] = outcome
                if isinstance(outcome, exceptions.AskError):
                    left[self._redirected(address, outcome)].append(i)
            if not left:
                break
        return outcomes

    async def _one(self, address: Address, requests: list[Request], asking: bool) -> list[Outcome]:
        try:
            return await self._link(address).run(requests, asking=asking)
        except TROUBLE as failure:
            return [failure] * len(requests)

    def _redirected(self, refused_by: Address, answer: exceptions.AskError) -> tuple[Address, bool]:
        """Where to, and whether only this once (as during the move of a slot)."""
        address = (answer.host or refused_by[0], answer.port)
        if isinstance(answer, exceptions.MovedError):
            self._owners[answer.slot_id % _SLOTS] = address
            self._known = False
            return address, False
        return address, True

    def _owner(self, slot: int) -> Address:
        owner = self._owners[slot]
        if owner is None:
            raise exceptions.ClusterDownError(f"no node has slot {slot}")
        return owner

    async def ping_keys(self) -> list[str]:
        await self._learn()
        wanted = {owner for owner in self._owners if owner is not None}
        keys: list[str] = []
        for number in range(_SLOTS):
            key = f"{PING_KEY}:{number}"
            owner = self._owners[key_slot(key.encode())]
            if owner in wanted:
                wanted.remove(owner)
                keys.append(key)
            if not wanted:
                break
        return keys

    async def _learn(self) -> None:
        async with self._learning:
            if self._known:
                return
            ranges = await first(self._ranges(address) for address in sorted(self._nodes))
            owners: list[Address | None] = [None] * _SLOTS
            nodes: set[Address] = set()
            for start, end, masters_first in ranges:
                owners[start : end + 1] = [masters_first[0]] * (end + 1 - start)
                nodes.update(masters_first)
            self._owners, self._known = owners, True
            # Those of the URL may come back.
            self._nodes = {*nodes, *self._url.addresses}
            for address in self._links.keys() - self._nodes:
                await self._links.pop(address).close()

    async def _ranges(self, address: Address) -> list[tuple[int, int, list[Address]]]:
        """First slot, last slot, nodes that have them: the master first."""
        answer = await self._link(address).ask(b"CLUSTER", b"SLOTS")
        if not all(0 <= start <= end < _SLOTS for start, end, *_ in answer):
            raise Damaged("an answer that cannot be read: no such slots")
        if not answer:
            raise exceptions.ClusterDownError(f"{address[0]}:{address[1]} knows of no slots")
        return [
            (start, end, [((host or b"").decode() or address[0], port) for host, port, *_ in nodes])
            for start, end, *nodes in answer
        ]

    def _link(self, address: Address) -> Link:
        if address not in self._links:
            self._links[address] = Link(address, self._url.connection, self._url.tls, self._timeout)
        return self._links[address]

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()
