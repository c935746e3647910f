"""A drafter's settings: which part of which drafter a process is."""

from __future__ import annotations

import pytest

from drafter_service.settings import Settings
from slipstream.core.errors import ConfigurationError
from slipstream.wire.process import read_settings

PEERS = "--peers=d-{}.d.ns.svc:50052"


def read(*options: str) -> Settings:
    return read_settings(Settings, ["--model", "m", *options])


def test_ordinals() -> None:
    """Pods in a row are drafters, one after the other: each shard knows its place and the next."""
    places = [
        (settings.index, settings.next_address)
        for ordinal in range(6)
        for settings in [read("--shard-count=3", f"--ordinal={ordinal}", PEERS)]
    ]
    assert places == [
        (0, "d-1.d.ns.svc:50052"),
        (1, "d-2.d.ns.svc:50052"),
        (2, ""),
        (0, "d-4.d.ns.svc:50052"),
        (1, "d-5.d.ns.svc:50052"),
        (2, ""),
    ]


def test_ordinals_of_whole_drafters() -> None:
    """With one part each every process is a drafter, and has no next one."""
    settings = read("--ordinal=7", PEERS)
    assert (settings.index, settings.next_address) == (0, "")


def test_index_and_next_as_before() -> None:
    """Without an ordinal the two options say it."""
    settings = read("--shard-count=2", "--next=a:1")
    assert (settings.index, settings.next_address) == (0, "a:1")
    settings = read("--shard-count=2", "--shard-index=1")
    assert (settings.index, settings.next_address) == (1, "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard-count=2", "--ordinal=0"), "--ordinal and --peers belong together"),
        (("--shard-count=2", PEERS), "--ordinal and --peers belong together"),
        (("--ordinal=0", PEERS, "--shard-index=0"), "leave those out"),
        (("--ordinal=0", PEERS, "--next=a:1"), "leave those out"),
        (("--ordinal=0", "--peers=d-0:50052"), "must have {} where an address has the ordinal"),
        (("--ordinal=0", "--peers=d-{}"), "--peers must be host:port"),
        (("--ordinal=-1", PEERS), "--ordinal: Input should be greater than or equal to 0"),
        (("--ordinal=$(POD_INDEX)", PEERS), "--ordinal: Input should be a valid integer"),
    ],
)
def test_ordinals_that_make_no_row(options, said) -> None:
    """Each is refused with what would be right."""
    with pytest.raises(ConfigurationError) as refused:
        read(*options)
    assert said in refused.value.message


def test_hung_step_and_health() -> None:
    """Probes are off unless asked for; a step has a bound that is more than nothing."""
    assert read().health == "off"
    with pytest.raises(ConfigurationError, match="--hung-step"):
        read("--hung-step=0")
