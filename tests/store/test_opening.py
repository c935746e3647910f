"""URLs of stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.store import default_url, describe, open_store


@pytest.mark.parametrize(
    "url",
    [
        "", "store.db", "sqlite://", "sqlite:///", "sqlite://host/store.db", "sqlite:store.db",
        "sqlite:///a.db?mode=ro", "http://x", "memory://", "redis://[::1",
    ],
)  # fmt: skip
def test_bad_urls(url):
    """What names no store is refused with the forms that there are."""
    with pytest.raises(ConfigurationError, match="sqlite:///"):
        open_store(url)


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
