"""A TCP proxy that damages, delays or encrypts what passes."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """
    Attributes:
        delay: seconds that every piece waits on its way to the server.
        flips: by direction ("out" to the server, "in" to the client), the place of the byte that
            gets a bit flipped, once, counted from when it was set.
        pieces: that came for the server.
    """

    def __init__(self, target, *, ssl=None):
        self.host, _, port = target.rpartition(":")
        self.port = int(port)
        self.delay = 0.0
        self.flips = {}
        self.flipped = self.pieces = 0
        self.address = ""
        self._ssl = ssl
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._ssl)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            inner_reader, inner_writer = await asyncio.open_connection(self.host, self.port)
            pumps = [
                asyncio.ensure_future(self._pump(reader, inner_writer, "out")),
                asyncio.ensure_future(self._pump(inner_reader, writer, "in")),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                for end in (writer, inner_writer):
                    end.close()
        except (OSError, asyncio.CancelledError):
            # asyncio's own callback wants no cancelled task.
            writer.close()
        finally:
            self._tasks.discard(asyncio.current_task())

    async def _pump(self, reader, writer, direction):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.pieces += direction == "out"
                if direction == "out" and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(self._damaged(data, direction))
                await writer.drain()

    def _damaged(self, data, direction):
        place = self.flips.get(direction)
        if place is None:
            return data
        if place >= len(data):
            self.flips[direction] = place - len(data)
            return data
        del self.flips[direction]
        self.flipped += 1
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 7)
        return bytes(changed)
