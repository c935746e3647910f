"""Where Redis is and how to get in, from a URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from slipstream.core.errors import ConfigurationError

Form = Literal["server", "sentinel", "cluster"]
Address = tuple[str, int]

_FORMS: Mapping[str, Form] = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}
_PORTS: Mapping[Form, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_SENTINEL = ("sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """
    Attributes:
        addresses: of the server, of the Sentinels, or of some nodes of the Cluster.
        master: the master's name at the Sentinels.
        connection: arguments of redis-py's connections to servers: who we are, database, TLS.
        sentinel: the same for connections to Sentinels.
    """

    form: Form
    addresses: tuple[Address, ...]
    master: str
    tls: bool
    connection: Mapping[str, Any]
    sentinel: Mapping[str, Any]


def parse(url: str) -> RedisUrl:
    """
    Raises:
        ConfigurationError: it is no URL of Redis; the message has no password in it.
    """
    try:
        return _parse(url)
    except ValueError as failure:
        raise ConfigurationError(f"the session store's URL: {failure}") from None


def _parse(url: str) -> RedisUrl:
    head, _, rest = url.partition("://")
    scheme, _, suffix = head.partition("+")
    if scheme not in {"redis", "rediss"} or suffix not in _FORMS:
        raise ValueError(f"no such form of Redis: {head}")
    form, tls = _FORMS[suffix], scheme == "rediss"
    body, _, query = rest.partition("?")
    login, _, places = body.rpartition("@")
    hosts, _, path = places.partition("/")
    addresses = tuple(_address(host, _PORTS[form]) for host in hosts.split(","))
    if form == "server" and len(addresses) > 1:
        raise ValueError("several hosts are for redis+sentinel:// or redis+cluster://")
    master, database = _path(form, path)
    user, _, password = login.partition(":")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if query and not all("=" in option for option in query.split("&")):
        raise ValueError("its options are not of the form ?name=value&name=value")
    security = _security(options, tls)
    sentinel = {name.removeprefix("sentinel_"): options.pop(name, None) for name in _SENTINEL}
    if options or (form != "sentinel" and any(sentinel.values())):
        known = ", ".join((*_FILES, "ssl_cert_reqs", "ssl_check_hostname", *_SENTINEL))
        raise ValueError(f"unknown or misplaced options; these are known: {known}")
    who = {"username": unquote(user) or None, "password": unquote(password) or None}
    return RedisUrl(
        form, addresses, master, tls, {**who, **security, "db": database}, {**sentinel, **security}
    )


def _address(text: str, port: int) -> Address:
    """Raises ValueError without the text, which may hold a password."""
    try:
        parts = urlsplit(f"//{text}")
        host, given = parts.hostname, parts.port
    except ValueError:
        host, given = None, None
    if not host or parts.username is not None:
        raise ValueError("a host is missing, or is not of the form host:port")
    return host, given or port


def _path(form: Form, path: str) -> tuple[str, int]:
    """The master's name and the database."""
    master, database = "", path
    if form == "sentinel":
        master, _, database = path.partition("/")
        if not master:
            raise ValueError("the master's name is missing: redis+sentinel://host:port/name")
    if database and (form == "cluster" or not database.isdecimal()):
        raise ValueError("the database is a number, and a Cluster has none")
    return unquote(master), int(database or 0)


def _security(options: dict[str, str], tls: bool) -> dict[str, Any]:
    """Takes the options of TLS out."""
    found: dict[str, Any] = {
        name: options.pop(name) for name in list(options) if name.startswith("ssl_")
    }
    if found and not tls:
        raise ValueError("ssl_ options are for rediss://")
    if extra := found.keys() - {*_FILES, "ssl_cert_reqs", "ssl_check_hostname"}:
        raise ValueError(f"unknown options: {', '.join(sorted(extra))}")
    for name in _FILES:
        if name in found and not Path(found[name]).is_file():
            raise ValueError(f"{name}: there is no file {found[name]}")
    if found.get("ssl_cert_reqs", "required") not in {"required", "none"}:
        raise ValueError("ssl_cert_reqs is required or none")
    if found.get("ssl_check_hostname", "true") not in {"true", "false"}:
        raise ValueError("ssl_check_hostname is true or false")
    checked = found.get("ssl_cert_reqs") != "none"
    if tls:
        found["ssl_check_hostname"] = checked and found.get("ssl_check_hostname") != "false"
    return found
