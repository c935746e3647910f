"""Where the processes of one kind are: addresses, names in DNS, Kubernetes Services, or a mix."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from slipstream.core.errors import ConfigurationError
from slipstream.discovery.service import SCHEME, Service
from slipstream.discovery.slices import Endpoint, Found, found_in
from slipstream.discovery.watch import Patience, ServiceWatch
from slipstream.wire.address import join, split

_DNS = "dns:///"
_LOOKUP_SECONDS = 2.0
Source = Literal["endpointslices", "dns", "nothing"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Discovery:
    """How one Service is followed.

    Attributes:
        entry: as the option names it.
        source: who says what there is; "nothing": nobody has, yet.
        detail: what is wrong, in full; empty where all is well.
        short: the same in a few words.
        ready, draining: endpoints.
    """

    entry: str
    source: Source
    detail: str = ""
    short: str = ""
    ready: int = 0
    draining: int = 0


class Endpoints:
    """Endpoints as an option lists them, separated by commas:

    - `host:port`: one address; gRPC looks up the name.
    - `dns:///name:port`: as many as DNS has for the name, as of a headless service, and may be
      others at the next `resolve`.
    - `k8s:///SERVICE:PORT`, `k8s://NAMESPACE/SERVICE:PORT`: the pods of a Service, as its
      EndpointSlices say, which are watched. Where they cannot be had, DNS stands in for them.

    Lives on one event loop; watches begin with the first `resolve`.

    Args:
        option: what errors call it, as `--verifier`.
        role: of the Services that may be named; empty: any.

    Attributes:
        static: whether every `resolve` gives the same.
        changes: how often a Service had other endpoints. Look before `resolve`, as it may change
            in the course of it.

    Raises:
        ConfigurationError: an entry is malformed, empty or there twice.
    """

    def __init__(
        self, spec: str, option: str, role: str = "", patience: Patience | None = None
    ) -> None:
        self._entries = tuple(entry.strip() for entry in spec.split(","))
        self._watches: dict[str, ServiceWatch] = {}
        self._role = role
        self.changes = 0
        self._change = asyncio.Event()
        for entry in self._entries:
            if not entry:
                raise ConfigurationError(f"{option} has an empty entry: {spec!r}")
            if self._entries.count(entry) > 1:
                raise ConfigurationError(f"{option} names {entry} twice")
            if entry.startswith(SCHEME):
                service = Service.parse(entry, option)
                self._watches[entry] = ServiceWatch(service, self._tell, patience)
                continue
            host, _ = split(entry.removeprefix(_DNS), option)
            if "/" in host:
                raise ConfigurationError(
                    f"{option} takes host:port, {_DNS}name:port and {SCHEME}/SERVICE:PORT,"
                    f" got {entry!r}"
                )
        self._known: dict[tuple[str, int], tuple[Endpoint, ...]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Future[tuple[Endpoint, ...]]] = {}
        self._troubles: dict[tuple[str, int], str] = {}
        self.static = not any(entry.startswith((_DNS, SCHEME)) for entry in self._entries)

    def __str__(self) -> str:
        return ", ".join(self._entries)

    async def resolve(self) -> tuple[Endpoint, ...]:
        """All of them now, each address once, in an order that depends on what there is alone.

        Takes two seconds at most, for DNS or for the first answer of an API server. A name that
        cannot be looked up has the addresses that it had.
        """
        found = await asyncio.gather(*(self._of(entry) for entry in self._entries))
        known: dict[str, Endpoint] = {}
        for endpoint in (one for several in found for one in several):
            # An address alone says less than a slice.
            other = known.get(endpoint.address)
            if other is None or other == Endpoint(endpoint.address):
                known[endpoint.address] = endpoint
        return tuple(known.values())

    async def changed(self, since: int, seconds: float) -> None:
        """Waits until `changes` is another number than `since`, for so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.changes == since:
                    await self._change.wait()

    def describe(self) -> tuple[Discovery, ...]:
        """How each Service is followed; nothing of addresses and plain names."""
        return tuple(self._describe(entry) for entry in self._watches)

    async def close(self) -> None:
        """Ends the watches."""
        await asyncio.gather(*(watch.close() for watch in self._watches.values()))

    def _tell(self) -> None:
        self.changes += 1
        self._change.set()
        self._change = asyncio.Event()

    async def _of(self, entry: str) -> tuple[Endpoint, ...]:
        if entry.startswith(SCHEME):
            return await self._of_service(self._watches[entry])
        if entry.startswith(_DNS):
            return await self._look_up(*split(entry.removeprefix(_DNS)))
        return (Endpoint(entry),)

    async def _of_service(self, watch: ServiceWatch) -> tuple[Endpoint, ...]:
        watch.start()
        await watch.tried(_LOOKUP_SECONDS)
        known = self._found(watch).endpoints
        dns = watch.service.dns
        if not watch.stale or dns is None:
            return known
        return await self._look_up(*dns) or known

    def _found(self, watch: ServiceWatch) -> Found:
        return found_in(watch.slices, watch.service.port, self._role)

    def _describe(self, entry: str) -> Discovery:
        watch = self._watches[entry]
        found, dns, failure = self._found(watch), watch.service.dns, watch.failure
        endpoints = found.endpoints
        source: Source = "endpointslices"
        detail = short = found.wrong
        if failure is not None:
            held = "what was known holds"
            if watch.stale:
                held = "using DNS" if dns else "DNS cannot stand in for a named port"
            detail, short = f"{failure.message}; {held}", f"{failure.short}, {held}"
        if watch.stale:
            addresses = self._known.get(dns, ()) if dns else ()
            endpoints = addresses or endpoints
            source = "dns" if addresses else "endpointslices" if watch.listed else "nothing"
        draining = sum(one.draining for one in endpoints)
        return Discovery(entry, source, detail, short, len(endpoints) - draining, draining)

    async def _look_up(self, host: str, port: int) -> tuple[Endpoint, ...]:
        name = (host, port)
        # One that hangs holds a thread: no second one is begun beside it.
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = asyncio.ensure_future(_lookup(host, port))
            lookup.add_done_callback(lambda _: self._lookups.pop(name, None))
            self._lookups[name] = lookup
        try:
            async with asyncio.timeout(_LOOKUP_SECONDS):
                self._known[name] = await asyncio.shield(lookup)
        except (OSError, UnicodeError) as failure:
            self._trouble(name, str(failure) or "no answer in time")
        else:
            self._trouble(name, "")
        return self._known.get(name, ())

    def _trouble(self, name: tuple[str, int], why: str) -> None:
        """Said once: a name without addresses is what a service of no pods has, for hours."""
        if self._troubles.get(name, "") != why:
            self._troubles[name] = why
            if why:
                log.warning("%s cannot be looked up: %s", join(*name), why)


async def _lookup(host: str, port: int) -> tuple[Endpoint, ...]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return _sorted((str(where[0]), int(where[1])) for *_, where in found)


def _sorted(found: Iterable[tuple[str, int]]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(join(host, port)) for host, port in sorted(set(found)))
