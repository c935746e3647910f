"""`host:port`, as options and messages have it; an IPv6 host stands in brackets."""

from __future__ import annotations

import socket

from slipstream.core.errors import ConfigurationError


def split(address: str, option: str = "an address", *, any_host: bool = False) -> tuple[str, int]:
    """Host, without brackets, and port.

    Args:
        option: what the message calls it.
        any_host: whether the host may be left out, for all of this machine's addresses.

    Raises:
        ConfigurationError: it is not of that form, or there is no such port.
    """
    host, colon, port = address.rpartition(":")
    known = colon and (host or any_host)
    if not known or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigurationError(f"{option} must be host:port, got {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join(host: str, port: int) -> str:
    """The address of host (without brackets) and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_free(address: str, option: str = "the address to listen on") -> None:
    """That a server can listen there. gRPC, asked in vain, would write lines of its own about it to
    stderr, around our one, and take a port modulo 65536.

    Raises:
        ConfigurationError: it cannot, or it is no address.
    """
    host, port = split(address, option, any_host=True)
    try:
        family, kind, _, _, where = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as failure:
        raise not_free(address, option) from failure


def not_free(address: str, option: str = "") -> ConfigurationError:
    """The error where a server cannot listen at `address`."""
    named = f" ({option})" if option.startswith("--") else ""
    return ConfigurationError(
        f"cannot listen on {address}{named}: the port is in use or the address is not ours"
    )
