"""The HTTP server's socket and protocol: connections that are dead or unread do not stay."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from slipstream.core.errors import ConfigurationError

# What the kernel holds for a client that does not read; by default it would grow to megabytes.
_SEND_BUFFER_BYTES = 256 * 1024
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_ABORT, _CLOSE, _GIVEN_UP = "abort_connection", "close_connection", "connection_given_up"


class Server(uvicorn.Server):
    """Signals are the process's business: it stops both doors in order."""

    def keep_none_alive(self) -> None:
        """Connections that wait for another request are closed, those that are served are behind
        their answer. Clients connect anew then, maybe elsewhere."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, Protocol):
                connection.keep_no_longer()

    async def end(self, task: asyncio.Task[None], seconds: float) -> None:
        """Takes no more connections, and waits for `task`, which serves; what is left after so
        many seconds is cut."""
        self.config.timeout_graceful_shutdown = math.ceil(seconds)
        self.should_exit = True
        await task

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Protocol(HttpToolsProtocol):
    """Lets an answer cut its connection: closing it would wait until all is read. And tells it
    whether the kernel did, because nobody took its data."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._given_up = self._in_head = False
        ways = {_ABORT: self._abort, _CLOSE: transport.close, _GIVEN_UP: lambda: self._given_up}
        self.app_state = {**self.app_state, **ways}

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def keep_no_longer(self) -> None:
        """One that had no request yet, or has half of one, stays: it gets its answer."""
        if self.cycle is not None and not self._in_head:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._given_up = isinstance(exc, TimeoutError)
        super().connection_lost(exc)

    def _abort(self) -> None:
        # Else the kernel would go on offering what it holds to a client that does not want it.
        linger = struct.pack("ii", 1, 0)
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self.transport.abort()


def abort(scope: Scope) -> None:
    """Cuts the connection that a request came on; what is not read yet is thrown away."""
    _end(scope, _ABORT)


async def hang_up(scope: Scope) -> None:
    """Ends the connection after what was sent, so that an unfinished answer is seen to be one."""
    _end(scope, _CLOSE)
    # The server hears of it in the loop's next turn, and then misses no end of the answer.
    await asyncio.sleep(0)


def given_up(scope: Scope) -> bool:
    """Whether the connection is lost because nobody took, or acknowledged, its data for too long.

    A stream may be so slow that it never fills the buffers before that.
    """
    asked: Callable[[], bool] | None = scope.get("state", {}).get(_GIVEN_UP)
    return asked is not None and asked()


def _end(scope: Scope, how: str) -> None:
    end: Callable[[], None] | None = scope.get("state", {}).get(how)
    if end is not None:
        end()


def listen(host: str, port: int, unread_seconds: float) -> socket.socket:
    """A bound socket. Connections of hosts that are gone, or read nothing, end by themselves.

    Args:
        unread_seconds: after which the kernel gives up a connection whose data nobody takes.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name like localhost may stand for both families; clients are told 127.0.0.1.
        family, kind, proto, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Connections inherit these.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            options = {**_KEEPALIVE, "TCP_USER_TIMEOUT": round(1000 * unread_seconds)}
            for name, value in options.items():
                if hasattr(socket, name):
                    listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as failure:
        reason = failure.strerror or str(failure)
        raise ConfigurationError(f"cannot listen on {host}:{port} (--http): {reason}") from failure
    listener.setblocking(False)
    return listener
