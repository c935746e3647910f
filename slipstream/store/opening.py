"""Stores by their URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import platformdirs

from slipstream.core.errors import ConfigurationError
from slipstream.store.interface import Store

FORMS = (
    "sqlite:///path.db, redis://[user:password@]host[:port][/db], rediss://..., "
    "redis+sentinel://[user:password@]host:port,host:port/master[/db] or "
    "redis+cluster://[user:password@]host:port,host:port (TLS: rediss+...)"
)


def default_url() -> str:
    """A file in the user's state folder."""
    path = platformdirs.user_state_path("slipstream") / "store.db"
    return f"sqlite://{quote(str(path))}"


def open_store(url: str, *, timeout: float = 2.0) -> Store:
    """The store that a URL names.

    A file is opened now; a server is first spoken to with the first call, so it may be down.

    Args:
        timeout: seconds that a call may take, or wait for other processes; a guard's comes first.

    Raises:
        ConfigurationError: no such URL, or the file is unusable.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "sqlite":
        from slipstream.store.sqlite import SqliteStore

        return SqliteStore(_file(url), busy_timeout=timeout)
    if separator and scheme.split("+")[0] in {"redis", "rediss"}:
        from slipstream.store.redis import RedisStore
        from slipstream.store.redis_url import parse

        return RedisStore(parse(url), timeout=timeout)
    raise ConfigurationError(f"{describe(url)!r} names no session store: one has the form {FORMS}")


def _file(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(unquote(parts.path))
    if parts.netloc or not path.is_absolute() or path == Path("/") or parts.query or parts.fragment:
        raise ConfigurationError(
            f"the session store's file is given as sqlite:///absolute/path.db, not as {url!r}"
        )
    return path


def describe(url: str) -> str:
    """The URL without passwords, for logs and messages; also of one that makes no sense."""
    body, question, query = url.partition("?")
    head, at, hosts = body.rpartition("@")
    scheme, separator, login = head.partition("://")
    user, hidden, _ = login.partition(":")
    if at and hidden:
        head = f"{scheme}{separator}{user}:***"
    elif at and not separator:
        head = "***"
    return f"{head}{at}{hosts}{question}{'&'.join(map(_hidden, query.split('&')))}"


def _hidden(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}=***" if equals and "password" in name.lower() else f"{name}{equals}{value}"
