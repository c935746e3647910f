"""The command lines behind each row: who computes where, at which precision, on whose drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.bench.rows import TABLE, drafter_name
from slipstream.bench.setups import Place, drafter_commands, verifier_command

PLACE = Place(Path("/m"), Path("/logs"), (0, 1), "strict")
SETUPS = {row.name: row.setup for row in TABLE if row.setup is not None}


def option(words, name):
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize(
    ("row", "cpus", "placement", "precision"),
    [
        ("plain-1core", "0", "separate", "native"),
        ("plain-allcores", "0,1", "separate", "native"),
        ("speculative-separate", "0", "separate", "native"),
        ("speculative-shared", "0,1", "shared", "native"),
        ("speculative-best", "0,1", "auto", "native"),
        ("plain-int8", "0,1", "separate", "int8"),
        ("plain-int8-1core", "0", "separate", "int8"),
        ("speculative-int8", "0,1", "auto", "int8"),
        ("int8-separate", "0", "separate", "int8"),
        ("drafter-random", "0", "separate", "native"),
        ("drafter-slow", "0", "separate", "native"),
        ("drafter-2shards", "0", "separate", "native"),
    ],
)
def test_verifiers(row, cpus, placement, precision):
    """Cores, placement and precision are what the row stands for; dtype and exactness are alike."""
    words = verifier_command(SETUPS[row], PLACE, "h:1", "h:2")
    assert option(words, "--cpus") == cpus
    assert option(words, "--threads") == str(len(cpus.split(",")))
    assert option(words, "--placement") == placement
    assert option(words, "--precision") == precision
    assert option(words, "--dtype") == "bfloat16"
    assert option(words, "--exactness") == "strict"
    assert (option(words, "--listen"), option(words, "--drafter")) == ("h:1", "h:2")


def test_drafters():
    """Each row has the drafter that it is named for, on the cores that the row gives it."""
    cores = {"speculative-separate": "1", "speculative-best": "0,1", "drafter-slow": "1"}
    for row, cpus in cores.items():
        (command,) = drafter_commands(SETUPS[row], PLACE)
        assert option(command.words, "-m") == "drafter_service"
        assert option(command.words, "--cpus") == cpus
        assert option(command.words, "--slowdown") == ("10" if row == "drafter-slow" else None)
        assert command.name == drafter_name(row)
    (command,) = drafter_commands(SETUPS["drafter-random"], PLACE)
    assert option(command.words, "-m") == "slipstream.bench.adversary"
    assert option(command.words, "--cpus") == "1"
    assert drafter_commands(SETUPS["plain-allcores"], PLACE) == []


def test_shards_are_a_chain_on_the_cores_of_the_whole():
    """The last shard starts first; the verifier talks to the first, which knows the next."""
    last, first = drafter_commands(SETUPS["drafter-2shards"], PLACE)
    assert (option(last.words, "--shard-index"), option(first.words, "--shard-index")) == ("1", "0")
    assert option(first.words, "--next") == last.address
    assert option(last.words, "--next") is None
    assert [option(c.words, "--cpus") for c in (first, last)] == ["1", "1"]
    assert first.name == drafter_name("drafter-2shards", 0)


def test_a_machine_of_one_core():
    """Everything then runs on that core."""
    alone = Place(Path("/m"), Path("/logs"), (3,), "auto")
    (command,) = drafter_commands(SETUPS["speculative-separate"], alone)
    assert option(command.words, "--cpus") == "3"
    assert option(verifier_command(SETUPS["plain-1core"], alone, "h:1", "off"), "--cpus") == "3"
