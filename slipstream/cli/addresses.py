"""`host:port` options, and whether their ports can be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from slipstream.core.errors import ConfigurationError
from slipstream.wire.address import join, split

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 recognised, not bound


def reachable(address: str) -> str:
    """Where this machine reaches what listens on `address`: a wildcard host becomes loopback."""
    host, _, port = address.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"


def claim(addresses: Mapping[str, str]) -> dict[str, str]:
    """Checks that every address can be bound now; port 0 is replaced by a free port.

    Args:
        addresses: option name -> `host:port`.

    Raises:
        ConfigurationError: a port is in use, two options ask for the same, or a host is not ours.
    """
    claimed: dict[str, str] = {}
    held: list[socket.socket] = []
    # All are held until the last is checked, so that two options cannot get the same port.
    try:
        for option, address in addresses.items():
            host, port = split(address, option)
            listener = _bind(option, host, port)
            held.append(listener)
            claimed[option] = join(host, listener.getsockname()[1])
    finally:
        for listener in held:
            listener.close()
    return claimed


def _bind(option: str, host: str, port: int) -> socket.socket:
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        # Connections of a server that has just stopped do not count as use.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        # Without listening, a second bind to the same port would succeed.
        listener.listen(1)
    except OSError as failure:
        if listener is not None:
            listener.close()
        if failure.errno == errno.EADDRINUSE:
            raise ConfigurationError(
                f"port {port} of {host} is in use: stop what listens there, "
                f"or choose another with {option} HOST:PORT"
            ) from failure
        raise ConfigurationError(
            f"{option}: cannot listen on {host}:{port}: {failure.strerror}"
        ) from failure
    return listener
