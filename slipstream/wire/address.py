"""`host:port`, as options and messages have it; an IPv6 host stands in brackets."""

from __future__ import annotations

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
