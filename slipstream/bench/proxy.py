"""Carries TCP connections from a listener to a target, piece by piece; a subclass says how."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

from slipstream.wire.address import split

# Small enough that the last byte of a piece is not much later than the first.
_PIECE_BYTES = 8 * 1024
# Pieces under way on a connection before its sender has to wait: 32 MiB.
_MOST_PIECES = 4096


@dataclass(slots=True)
class Lane:
    """One direction of a proxy. Its connections share the bandwidth.

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


class Passage(ABC):
    """One direction of one connection."""

    @abstractmethod
    def take(self, piece: bytes, now: float) -> tuple[float, bytes] | None:
        """When a piece arrives that was sent now, and as what; None for never.

        An empty piece is the sender's end of the connection. Where it never arrives the connection
        stays open.
        """

    async def open(self) -> None:
        """Returns once what has arrived may be handed over."""
        return


@dataclass(slots=True, eq=False)
class Connection:
    """One that is being carried, with its two ends and its two directions."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    passages: tuple[Passage, Passage]
    task: asyncio.Task[None]

    def end(self, *, reset: bool) -> None:
        """Both ends see it closed: in order, or by a reset that also discards what is under way."""
        if reset:
            _reset(self.near)
            _reset(self.far)
        self.task.cancel()


def _reset(end: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        # Closing a socket that lingers for no time resets its connection.
        linger = struct.pack("ii", 1, 0)
        end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    end.transport.abort()


class Proxy(ABC):
    """Use it as an async context manager, on one event loop."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self.connections: set[Connection] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections, and takes none any more."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @abstractmethod
    def passages(self, number: int, *, from_far_end: bool) -> tuple[Passage, Passage] | None:
        """How a connection's bytes get to the target, and back; None resets the connection.

        Args:
            number: of the connections so far.
        """

    async def forward(
        self,
        target: str,
        *,
        from_far_end: bool = False,
        listen: str = "127.0.0.1:0",
        tls: ssl.SSLContext | None = None,
    ) -> str:
        """Opens a way to `target`.

        Args:
            target: host:port; nobody need listen there yet.
            from_far_end: who connects is at the far end, and the target at the near one.
            listen: host:port; port 0 takes a free one.
            tls: of the server that who connects is to find; the target gets what was in it.

        Returns:
            The address to connect to instead.

        Raises:
            ConfigurationError: `target` or `listen` is no address.
            OSError: `listen` is taken.
        """
        to = split(target)
        host, port = split(listen, "the address to listen on")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await self._carry(reader, writer, to, from_far_end, task)
            finally:
                self._tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, host, port, limit=_PIECE_BYTES, ssl=tls)
        self._servers.append(server)
        return f"{host}:{server.sockets[0].getsockname()[1]}"

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target: tuple[str, int],
        from_far_end: bool,
        task: asyncio.Task[None],
    ) -> None:
        passages = self.passages(next(self._numbers), from_far_end=from_far_end)
        if passages is None:
            _reset(writer)
            return
        there, back = await asyncio.open_connection(*target, limit=_PIECE_BYTES)
        connection = Connection(writer, back, passages, task)
        self.connections.add(connection)
        try:
            for end in (writer, back):
                end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(passages[0], reader, back))
                group.create_task(_pump(passages[1], there, writer))
        except* OSError:
            # One end is gone; the other is told by closing its connection.
            pass
        finally:
            self.connections.discard(connection)
            back.close()


async def _pump(
    passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Carries one direction of a connection until its sender has ended it."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MOST_PIECES)

    async def deliver() -> None:
        while True:
            arrival, piece = await under_way.get()
            await asyncio.sleep(max(0.0, arrival - clock()))
            await passage.open()
            if not piece:
                if writer.can_write_eof():
                    writer.write_eof()
                else:
                    # TLS knows no end of one direction alone.
                    writer.close()
                return
            writer.write(piece)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(deliver())
        piece = b"begin"
        while piece:
            try:
                piece = await reader.read(_PIECE_BYTES)
            except OSError:
                # A reset is an end, too: where that does not arrive, nobody hears of it.
                if passage.take(b"", clock()) is None:
                    return
                raise
            taken = passage.take(piece, clock())
            if taken is not None:
                await under_way.put(taken)
