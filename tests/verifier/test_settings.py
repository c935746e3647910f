"""What the verifier's command line refuses, and how it says so."""

from __future__ import annotations

import socket

import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.wire.process import read_settings
from verifier_service.settings import Settings, advertised


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--window 0", "--window: "),
        ("--window many", "--window: "),
        ("--draft-length 99", "--draft-length: "),
        ("--draft-length 9", "--draft-length 9 is more than the 8 drafts"),
        ("--draft-length 4 --window 3", "--draft-length 4 is more than the 3 drafts"),
        ("--draft-length 4 --placement shared", "--draft-length N takes what is there"),
    ],
)
def test_lengths_that_cannot_be_had(words, said) -> None:
    """A refusal begins with the setting, or says which two of them do not go together."""
    with pytest.raises(ConfigurationError) as raised:
        read_settings(Settings, ["--model", "m", *words.split()])
    assert raised.value.message.startswith(said)


@pytest.mark.parametrize(
    "words", ["", "--draft-length 8", "--window 3", "--draft-length 64 --window 64"]
)
def test_lengths_that_fit(words) -> None:
    """A step may take every draft that there can be."""
    given = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    settings = read_settings(Settings, ["--model", "m", *words.split()])
    assert str(settings.draft_length) == given.get("--draft-length", "auto")
    assert str(settings.window) == given.get("--window", "auto")


@pytest.mark.parametrize(
    "drafter", ["off", "host:1", "a:1,b:2", "dns:///drafters:50052", "dns:///a:1, 127.0.0.1:2"]
)
def test_drafters_that_can_be_named(drafter) -> None:
    """None, one, a list, all of a name."""
    settings = read_settings(Settings, ["--model", "m", "--drafter", drafter])
    assert settings.drafter == drafter


@pytest.mark.parametrize("drafter", ["host", "a:1,", "a:1,a:1", "dns://x", "a:1,off", "a:99999"])
def test_drafters_that_cannot(drafter) -> None:
    """A refusal names the option."""
    with pytest.raises(ConfigurationError, match="--drafter"):
        read_settings(Settings, ["--model", "m", "--drafter", drafter])


def test_where_it_is_found() -> None:
    """Its address for keys and values: what it is told, else its own, for a wildcard the one that
    packets to the first drafter carry."""
    words = ["--model", "m", "--listen", "0.0.0.0:7", "--drafter"]
    for drafter in ("127.0.0.1:1,x:2", "dns:///127.0.0.1:1"):
        assert advertised(read_settings(Settings, [*words, drafter])) == "127.0.0.1:7"
    off = read_settings(Settings, [*words, "off"])
    assert advertised(off) == f"{socket.gethostname()}:7"
    plain = read_settings(Settings, ["--model", "m", "--listen", "1.2.3.4:7"])
    assert advertised(plain) == "1.2.3.4:7"
    told = read_settings(Settings, [*words, "off", "--advertise", "pod:9", "--zone", "b"])
    assert (advertised(told), told.zone, told.stop_grace) == ("pod:9", "b", 10.0)
