"""A `grpc.aio` server that listens again where gRPC has ended it.

grpcio (1.85) decodes the name of a call's method in the loop that takes calls. One that is no
UTF-8, by a flipped bit or by ill will, ends that loop, and with it the server: its calls go on, its
port is closed, and the process does not hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import grpc

log = logging.getLogger(__name__)
_RUNNING: weakref.WeakSet[LastingServer] = weakref.WeakSet()
# An ended server closes its port at once; whose port is open for so long has not ended.
_CLOSES_SECONDS, _LOOK_SECONDS = 2.0, 0.05
# Tries to listen again, one in so many seconds.
_TRIES, _TRY_SECONDS = 100, 0.1
# Calls of an ended server may go on for so long.
_CALLS_SECONDS = 3600.0


class LastingServer(grpc.aio.Server):
    """Takes one port, as `grpc.aio.server` does, and takes it again when it was lost.

    Args:
        make: a server without handlers and ports; called again for each that has ended.
    """

    def __init__(self, make: Callable[[], grpc.aio.Server]) -> None:
        self._make = make
        self._server = make()
        self._handlers: list[Callable[[grpc.aio.Server], None]] = []
        self._open: Callable[[grpc.aio.Server], int] | None = None
        self._place = ("", 0)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looking: asyncio.Task[None] | None = None
        self._suspected = False
        # Servers that have ended, whose calls go on, and what waits for these.
        self._ended: dict[asyncio.Task[None], grpc.aio.Server] = {}

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]
    ) -> None:
        handlers = tuple(generic_rpc_handlers)
        self._add(lambda server: server.add_generic_rpc_handlers(handlers))

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        self._add(
            lambda server: server.add_registered_method_handlers(service_name, method_handlers)
        )

    def add_insecure_port(self, address: str) -> int:
        return self._bind(address, lambda server, place: server.add_insecure_port(place))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        return self._bind(
            address, lambda server, place: server.add_secure_port(place, server_credentials)
        )

    async def start(self) -> None:
        await self._server.start()
        self._loop = asyncio.get_running_loop()
        _RUNNING.add(self)

    async def stop(self, grace: float | None) -> None:
        """As that of `grpc.aio`; calls of servers that have ended are stopped, too."""
        _RUNNING.discard(self)
        if self._looking is not None:
            self._looking.cancel()
        stops = [server.stop(grace) for server in (self._server, *self._ended.values())]
        await asyncio.gather(*stops)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:
        return bool(await self._server.wait_for_termination(timeout))

    def look(self) -> None:
        """Some server of this process has ended: listens again if it was this one. Any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._look)

    def _add(self, add: Callable[[grpc.aio.Server], None]) -> None:
        self._handlers.append(add)
        add(self._server)

    def _bind(self, address: str, bind: Callable[[grpc.aio.Server, str], int]) -> int:
        assert self._open is None, "it has a port"
        port = bind(self._server, address)
        host = address.rpartition(":")[0]
        self._open = lambda server: bind(server, f"{host}:{port}")
        self._place = (host.strip("[]"), port)
        return port

    def _look(self) -> None:
        self._suspected = True
        if self in _RUNNING and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._listen_again())

    async def _listen_again(self) -> None:
        # The new one may have ended before this is over.
        while self._suspected:
            self._suspected = False
            if await self._closed():
                await self._replace()

    async def _replace(self) -> None:
        server, self._server = self._server, self._make()
        waiting = asyncio.create_task(server.stop(_CALLS_SECONDS))
        self._ended[waiting] = server
        waiting.add_done_callback(self._ended.pop)
        for add in self._handlers:
            add(self._server)
        if not await self._opened():
            log.error("%s:%d was closed by a call that is no gRPC, and is taken now", *self._place)
            return
        await self._server.start()
        log.warning("%s:%d was closed by a call that is no gRPC; it is open again", *self._place)

    async def _opened(self) -> bool:
        """Whether the new server could take the port."""
        assert self._open is not None, "whoever runs has a port"
        for _ in range(_TRIES):
            with contextlib.suppress(RuntimeError):
                self._open(self._server)
                return True
            await asyncio.sleep(_TRY_SECONDS)
        return False

    async def _closed(self) -> bool:
        """Whether nobody listens at the port any more, soon."""
        for _ in range(int(_CLOSES_SECONDS / _LOOK_SECONDS)):
            with contextlib.suppress(TimeoutError):
                try:
                    async with asyncio.timeout(_CLOSES_SECONDS):
                        _, writer = await asyncio.open_connection(*self._place)
                    writer.close()
                except OSError:
                    return True
            await asyncio.sleep(_LOOK_SECONDS)
        return False


def _server_ended(record: logging.LogRecord) -> bool:
    """gRPC logs the bare exception that has ended a server, and tells it to nobody else."""
    if isinstance(record.msg, Exception):
        for server in list(_RUNNING):
            server.look()
    return True


logging.getLogger("grpc._cython.cygrpc").addFilter(_server_ended)
