"""A TCP proxy that does what networks do to connections, on command, to test clients and servers.

async with FaultProxy("127.0.0.1:50051", seed=7) as proxy:
    address = await proxy.start()  # connect here instead
    proxy.corrupt(per_kib=0.1)
    ...
    proxy.heal()

Every fault may be switched on and off at any time, for one direction or both: "outward" is what
goes to the target. Which bits are flipped depends on the seed, on the number of the connection and
on how many bytes it carried, on nothing else. All of it lives on one event loop.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from slipstream.bench.proxy import Connection, Lane, Passage, Proxy

Direction = Literal["outward", "homeward", "both"]


@dataclass(slots=True)
class Counters:
    """What became of connections: taken, reset instead, ended by `cut` or the end of a freeze."""

    taken: int = 0
    refused: int = 0
    ended: int = 0


@dataclass(slots=True)
class Way:
    """One direction of the proxy: what is done to it now, and what was done since the start.

    Attributes:
        lane: `lane.carried` counts all bytes that were taken from their senders.
        pieces: in which these came; what is sent together comes in few.
        dropped: bytes that nobody got.
        flipped: bits.
        flips: expected ones for each byte.
        once: one bit is flipped so many bytes from now; None: it is not.
        orders: how often somebody said what to flip.
        timers: what ends a pause or a freeze.
    """

    lane: Lane = field(default_factory=Lane)
    pieces: int = 0
    dropped: int = 0
    flipped: int = 0
    delay: float = 0.0
    jitter: float = 0.0
    bytes_per_second: float | None = None
    frozen: bool = False
    flips: float = 0.0
    once: int | None = None
    orders: int = 0
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    timers: dict[str, asyncio.TimerHandle] = field(default_factory=dict)


class FaultProxy(Proxy):
    """Between clients and one target. Without orders it only carries.

    Args:
        target: host:port; nobody need listen there yet.
        seed: of all that is left to chance.

    Attributes:
        address: to connect to, once started.
        counters: of connections, since the start.
        outward, homeward: the two directions; `outward` goes to the target.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        super().__init__()
        self.target, self.seed = target, seed
        self.address = ""
        self.counters = Counters()
        self.outward, self.homeward = Way(), Way()
        self._ways = {"outward": self.outward, "homeward": self.homeward}
        self._refusing = False
        for way in self._ways.values():
            way.flowing.set()

    async def start(self, listen: str = "127.0.0.1:0", *, tls: ssl.SSLContext | None = None) -> str:
        """Listens; returns the address.

        Args:
            tls: who connects must speak TLS with a server of this context; the target must not.

        Raises:
            ConfigurationError: the target, or `listen`, is no address. OSError: it is taken.
        """
        self.address = await self.forward(self.target, listen=listen, tls=tls)
        return self.address

    async def close(self) -> None:
        self.heal()
        await super().close()

    def delay(self, seconds: float, jitter: float = 0.0, direction: Direction = "both") -> None:
        """Bytes arrive so much later, and by chance up to `jitter` seconds more; in their order."""
        for way in self._of(direction):
            way.delay, way.jitter = seconds, jitter

    def limit(self, bytes_per_second: float | None, direction: Direction = "both") -> None:
        """Bandwidth, shared by all connections. None: as much as the machine can do."""
        for way in self._of(direction):
            way.bytes_per_second = bytes_per_second

    def pause(self, seconds: float | None = None, direction: Direction = "both") -> None:
        """Bytes wait, for so long or until `heal`, and arrive then: an outage that TCP survives."""
        for way in self._of(direction):
            way.flowing.clear()
            self._later(way, "pause", seconds, way.flowing.set)

    def freeze(self, seconds: float | None = None, direction: Direction = "both") -> None:
        """Half-open: connections stay and new ones are taken, but no byte arrives, nor an end.

        After so many seconds, or with `heal`, those that lost bytes are reset, as by a host that
        was away and does not know them any more.
        """
        for way in self._of(direction):
            way.frozen = True
            self._later(way, "freeze", seconds, partial(self._thaw, way))

    def corrupt(self, per_kib: float, direction: Direction = "both") -> None:
        """Flips bits at random: on average `per_kib` in 1024 bytes. 0 for none."""
        for way in self._of(direction):
            way.flips, way.once = per_kib / 1024, None
            way.orders += 1

    def corrupt_once(self, after: int = 0, direction: Direction = "outward") -> None:
        """Flips one bit of the byte that comes `after` so many others, whatever the connection.

        That is once for each direction named, and ends what `corrupt` does.
        """
        for way in self._of(direction):
            way.flips, way.once = 0.0, after
            way.orders += 1

    def refuse(self, refusing: bool = True) -> None:
        """New connections are reset at once. Those that are there stay."""
        self._refusing = refusing

    def cut(self, how: Literal["reset", "end"] = "reset") -> int:
        """Ends all connections, by RST or by FIN. Returns how many."""
        ended = list(self.connections)
        for connection in ended:
            self._end(connection, reset=how == "reset")
        return len(ended)

    def heal(self) -> None:
        """Ends all faults. What was lost or damaged stays so."""
        self._refusing = False
        self.delay(0.0)
        self.limit(None)
        self.corrupt(0.0)
        for way in self._ways.values():
            for timer in way.timers.values():
                timer.cancel()
            way.flowing.set()
            if way.frozen:
                self._thaw(way)

    def passages(self, number: int, *, from_far_end: bool) -> tuple[Passage, Passage] | None:
        if self._refusing:
            self.counters.refused += 1
            return None
        self.counters.taken += 1
        names = ("homeward", "outward") if from_far_end else ("outward", "homeward")
        there, back = (_Faulty(self._ways[name], f"{self.seed}/{number}/{name}") for name in names)
        return there, back

    def _of(self, direction: Direction) -> Iterable[Way]:
        return self._ways.values() if direction == "both" else (self._ways[direction],)

    @staticmethod
    def _later(way: Way, what: str, seconds: float | None, end: Callable[[], None]) -> None:
        """Does `end` after so many seconds, and not what was to be done before."""
        if what in way.timers:
            way.timers.pop(what).cancel()
        if seconds is not None:
            way.timers[what] = asyncio.get_running_loop().call_later(seconds, end)

    def _thaw(self, way: Way) -> None:
        way.frozen = False
        for connection in list(self.connections):
            if any(isinstance(each, _Faulty) and each.gap for each in connection.passages):
                self._end(connection, reset=True)

    def _end(self, connection: Connection, *, reset: bool) -> None:
        self.counters.ended += 1
        self.connections.discard(connection)
        connection.end(reset=reset)


class _Faulty(Passage):
    """Does to one direction of one connection what `way` says.

    Attributes:
        gap: whether bytes, or the sender's end, are missing from what arrived.
    """

    def __init__(self, way: Way, seed: str) -> None:
        self.gap = False
        self._way, self._orders = way, -1
        # Strings seed alike in every process.
        self._flips, self._jitters = random.Random(f"{seed}/flips"), random.Random(f"{seed}/jitter")
        self._place = self._bit = 0

    def take(self, piece: bytes, now: float) -> tuple[float, bytes] | None:
        way = self._way
        way.pieces += 1
        delay = way.delay + (self._jitters.random() * way.jitter if way.jitter else 0.0)
        arrival = way.lane.arrival(len(piece), now, delay, way.bytes_per_second)
        if way.frozen or self.gap:
            self.gap = True
            way.dropped += len(piece)
            return None
        return arrival, self._flipped(piece)

    async def open(self) -> None:
        await self._way.flowing.wait()

    def _flipped(self, piece: bytes) -> bytes:
        way = self._way
        if self._orders != way.orders:
            self._orders = way.orders
            self._draw(0)
        flips = []
        if way.once is not None:
            if way.once < len(piece):
                flips.append((way.once, self._bit))
            way.once = way.once - len(piece) if way.once >= len(piece) else None
        if way.flips:
            while self._place < len(piece):
                flips.append((self._place, self._bit))
                self._draw(self._place + 1)
            self._place -= len(piece)
        if not flips:
            return piece
        damaged = bytearray(piece)
        for place, bit in flips:
            damaged[place] ^= bit
        way.flipped += len(flips)
        return bytes(damaged)

    def _draw(self, start: int) -> None:
        """The next flip, by chance: in which byte from `start` of this piece on, and which bit.

        Both at once: what is drawn must not depend on where pieces begin.
        """
        rate = self._way.flips
        self._place = start + (int(self._flips.expovariate(rate)) if rate else 0)
        self._bit = 1 << self._flips.randrange(8)
