"""Where the processes of one kind are: a list of addresses, names in DNS, or a mix of both."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable

from slipstream.core.errors import ConfigurationError
from slipstream.wire.address import join, split

_DNS = "dns:///"
_LOOKUP_SECONDS = 2.0
log = logging.getLogger(__name__)


class Endpoints:
    """Addresses as an option gives them: `host:port` or `dns:///name:port`, separated by commas.

    A plain name is one address, which gRPC looks up; a name with `dns:///` is as many as DNS has
    for it, as of a headless service, and may be others at the next `resolve`.

    Args:
        option: what errors call it, as `--verifier`.

    Attributes:
        static: whether every `resolve` gives the same.

    Raises:
        ConfigurationError: an entry is malformed, empty or there twice.
    """

    def __init__(self, spec: str, option: str) -> None:
        self._entries = tuple(entry.strip() for entry in spec.split(","))
        for entry in self._entries:
            if not entry:
                raise ConfigurationError(f"{option} has an empty entry: {spec!r}")
            if self._entries.count(entry) > 1:
                raise ConfigurationError(f"{option} names {entry} twice")
            host, _ = split(entry.removeprefix(_DNS), option)
            if "/" in host:
                raise ConfigurationError(
                    f"{option} takes host:port and {_DNS}name:port, got {entry!r}"
                )
        self._known: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        self.static = not any(entry.startswith(_DNS) for entry in self._entries)

    def __str__(self) -> str:
        return ", ".join(self._entries)

    async def resolve(self) -> tuple[str, ...]:
        """All addresses now, each once, in an order that depends on nothing but what there is.

        Takes two seconds at most. A name that cannot be looked up has the addresses that it had.
        """
        found = await asyncio.gather(*(self._of(entry) for entry in self._entries))
        return tuple(dict.fromkeys(address for addresses in found for address in addresses))

    async def _of(self, entry: str) -> tuple[str, ...]:
        if not entry.startswith(_DNS):
            return (entry,)
        # One that hangs holds a thread: no second one is begun beside it.
        lookup = self._lookups.get(entry)
        if lookup is None:
            lookup = asyncio.ensure_future(_lookup(*split(entry.removeprefix(_DNS))))
            lookup.add_done_callback(lambda _: self._lookups.pop(entry, None))
            self._lookups[entry] = lookup
        try:
            async with asyncio.timeout(_LOOKUP_SECONDS):
                self._known[entry] = await asyncio.shield(lookup)
        except (OSError, UnicodeError) as failure:
            log.warning("%s cannot be looked up: %s", entry, str(failure) or "no answer in time")
        return self._known.get(entry, ())


async def _lookup(host: str, port: int) -> tuple[str, ...]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return _sorted((str(where[0]), int(where[1])) for *_, where in found)


def _sorted(found: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    return tuple(join(host, port) for host, port in sorted(set(found)))
