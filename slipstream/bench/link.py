"""A network between two processes of one machine: it takes its time, and carries so much a second.

Connections go through a proxy in this process. Bytes arrive in order, each a delay after it was
sent, and any number of them may be under way, as on a long cable; what the bandwidth does not carry
at once waits. `precise_loop` gives the timers that delays of a millisecond need.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
from dataclasses import dataclass
from typing import Self

from slipstream.wire.address import split

# Small enough that the last byte of a piece is not much later than the first.
_PIECE_BYTES = 8 * 1024
# Pieces under way on a connection before its sender has to wait: 32 MiB.
_MOST_PIECES = 4096


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop with timers of microseconds; the usual one rounds up to milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@dataclass(slots=True)
class Lane:
    """One direction of a link. Its connections share the bandwidth.

    Attributes:
        carried: bytes, since the start.
    """

    carried: int = 0
    _free_at: float = 0.0
    _last_arrival: float = 0.0

    def arrival(self, size: int, now: float, delay: float, bytes_per_second: float | None) -> float:
        """When so many bytes that are sent now will be there. Never before those sent earlier."""
        sent = max(now, self._free_at)
        self._free_at = sent + (size / bytes_per_second if bytes_per_second else 0.0)
        self._last_arrival = max(self._last_arrival, self._free_at + delay)
        self.carried += size
        return self._last_arrival


class Link:
    """Between a near and a far end. Use it as an async context manager, on one event loop.

    Attributes:
        round_trip: seconds to the other end and back; may be changed at any time.
        bytes_per_second: in each direction; None for as much as the machine can do.
        outward, homeward: what goes from the near to the far end, and back.
    """

    def __init__(self, round_trip: float = 0.0, bytes_per_second: float | None = None) -> None:
        self.round_trip = round_trip
        self.bytes_per_second = bytes_per_second
        self.outward = Lane()
        self.homeward = Lane()
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def forward(self, target: str, *, from_far_end: bool = False) -> str:
        """Opens a way to `target`.

        Args:
            target: host:port; nobody need listen there yet.
            from_far_end: who connects is at the far end, and the target at the near one.

        Returns:
            The address to connect to instead.

        Raises:
            ConfigurationError: `target` is no address.
        """
        host, port = split(target)
        lanes = (self.homeward, self.outward) if from_far_end else (self.outward, self.homeward)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await self._carry(reader, writer, (host, port), lanes)
            finally:
                self._connections.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_PIECE_BYTES)
        self._servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: tuple[str, int],
        lanes: tuple[Lane, Lane],
    ) -> None:
        there, back = await asyncio.open_connection(*target, limit=_PIECE_BYTES)
        try:
            for end in (writer, back):
                end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(lanes[0], reader, back))
                group.create_task(self._pump(lanes[1], there, writer))
        except* OSError:
            # One end is gone; the other is told by closing its connection.
            pass
        finally:
            back.close()

    async def _pump(
        self, lane: Lane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Carries one direction of a connection until its sender has ended it."""
        clock = asyncio.get_running_loop().time
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_PIECES)

        async def deliver() -> None:
            while True:
                arrival, piece = await under_way.get()
                await asyncio.sleep(max(0.0, arrival - clock()))
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            piece = b"begin"
            while piece:
                piece = await reader.read(_PIECE_BYTES)
                delay, rate = self.round_trip / 2, self.bytes_per_second
                await under_way.put((lane.arrival(len(piece), clock(), delay, rate), piece))
