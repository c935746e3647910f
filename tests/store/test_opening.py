"""URLs of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.store import default_url, describe, open_store
from slipstream.store.redis_url import parse


@pytest.mark.parametrize(
    "url",
    [
        "", "store.db", "sqlite://", "sqlite:///", "sqlite://host/store.db", "sqlite:store.db",
        "sqlite:///a.db?mode=ro", "http://x", "memory://",
    ],
)  # fmt: skip
def test_bad_urls(url):
    """What names no store is refused with the forms that there are."""
    with pytest.raises(ConfigurationError, match="sqlite:///"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://", "host"),
        ("redis://[::1", "host"),
        ("redis://:s3cret@h:port", "host"),
        ("redis://h:1,g:2", "several hosts"),
        ("redis://h/x", "database"),
        ("redis+cluster://h/1", "Cluster has none"),
        ("redis+sentinel://h:1", "master's name"),
        ("redis+other://h", "no such form"),
        ("redis://h?ssl_cert_reqs=none", "for rediss"),
        ("rediss://h?ssl_ca_certs=/no/such", "no file /no/such"),
        ("rediss://h?ssl_cert_reqs=maybe", "required or none"),
        ("rediss://h?ssl_ca=x", "ssl_ca"),
        ("redis://h?max=1", "known: ssl_ca_certs"),
        ("redis://h?sentinel_password=s3cret", "misplaced"),
        ("redis://h?s3cret", "session store"),
    ],
)
def test_bad_redis_urls(url, words):
    """A URL that Redis cannot be found by is refused with the reason, and without its password."""
    with pytest.raises(ConfigurationError, match=words) as caught:
        open_store(url)
    assert "s3cret" not in caught.value.message


def test_redis_urls():
    """Hosts, ports, login, database, master and TLS are where the URL says, percent-decoded."""
    found = parse("redis://me:p%40ss@[::1]/3")
    assert (found.form, found.addresses, found.tls) == ("server", (("::1", 6379),), False)
    assert found.connection == {"username": "me", "password": "p@ss", "db": 3}
    found = parse("rediss+sentinel://:pw@a:1,b/main/2?sentinel_password=x&ssl_cert_reqs=none")
    assert (found.form, found.master, found.tls) == ("sentinel", "main", True)
    assert found.addresses == (("a", 1), ("b", 26379))
    tls = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    assert found.connection == {"username": None, "password": "pw", "db": 2, **tls}
    assert found.sentinel == {"username": None, "password": "x", **tls}
    found = parse("redis+cluster://a,b:2")
    assert (found.form, found.addresses) == ("cluster", (("a", 6379), ("b", 2)))


async def test_a_path_with_odd_letters(tmp_path):
    """A path may be percent-encoded."""
    store = open_store(f"sqlite://{tmp_path}/a%20b%23.db")
    assert (tmp_path / "a b#.db").is_file()
    await store.close()


def test_the_default_is_in_the_users_state_folder(monkeypatch, tmp_path):
    """Without a setting the store is a file of the user's."""
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}/s t")
    assert default_url() == f"sqlite://{tmp_path}/s%20t/slipstream/store.db"
    assert Path(tmp_path).exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a/b@c.db", "sqlite:///a/b@c.db"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:s3cret@host", "redis://:***@host"),
        ("rediss://me:s3c@ret/@host:1/2?a=b", "rediss://me:***@host:1/2?a=b"),
        ("redis+sentinel://u:s3cret@h1:1,h2:2/m", "redis+sentinel://u:***@h1:1,h2:2/m"),
        ("redis://h/m?sentinel_password=s3cret&x=1", "redis://h/m?sentinel_password=***&x=1"),
        ("redis:s3cret@host", "***@host"),
    ],
)
def test_passwords_are_not_shown(url, shown):
    """A URL in a log says where the store is and not how to get in."""
    assert describe(url) == shown
