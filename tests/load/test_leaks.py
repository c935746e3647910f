"""Leak checks: what is not given back is named."""

from __future__ import annotations

import os
import socket

import pytest

from slipstream.bench.load.leaks import Held, Snapshot, held, leaks
from slipstream.bench.load.watch import Watch, early_and_late

MIB = 2**20
BEFORE = Held(10, 500 * MIB, {"socket": 10, "/dev/shm/": 2}, 20)


def grown(**fields):
    now = {"pid": 10, "private": 500 * MIB, "files": BEFORE.files, "threads": 20} | fields
    after = Snapshot({"KV leases": 0}, {"gateway": Held(**now)})
    return leaks(Snapshot({}, {"gateway": BEFORE}), after, 64 * MIB)


def test_what_is_given_back_is_no_leak():
    """The same as before, a little more of what comes and goes, and a filled KV pool."""
    assert grown() == []
    assert grown(private=600 * MIB, files={"socket": 14, "/dev/shm/": 4}, threads=24) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"private": 700 * MIB}, "memory grew from 500 to 700 MiB"),
        ({"files": {"socket": 30, "/dev/shm/": 2}}, "20 socket"),
        ({"files": {"socket": 10, "/dev/shm/": 40}}, "38 /dev/shm/"),
        ({"threads": 60}, "threads grew from 20 to 60"),
    ],
)
def test_growth_is_named(fields, words):
    """Memory, sockets, files and threads beyond what comes and goes: one line that says which."""
    (line,) = grown(**fields)
    assert line.startswith("gateway: ")
    assert words in line


def test_whatever_is_counted_must_be_nothing():
    """A lease, a block or a sequence left at rest is a leak; so is a service that is gone."""
    after = Snapshot({"KV leases": 1, "requests running": 0}, {})
    found = leaks(Snapshot({}, {"gateway": BEFORE}), after, 0)
    assert found == ["1 KV leases", "gateway: the process is gone"]


def test_a_process_that_was_started_again_is_another_one():
    """Its memory is not compared with that of the one before."""
    assert grown(pid=11, private=5000 * MIB, threads=500) == []


def test_a_process_tells_what_it_has_open():
    """Ten sockets more are ten sockets more, in this very process."""
    before = held(os.getpid())
    opened = [socket.socket() for _ in range(10)]
    after = held(os.getpid())
    for each in opened:
        each.close()
    assert before is not None
    assert after is not None
    assert after.files["socket"] - before.files.get("socket", 0) == 10
    assert held(2**22 + 1) is None


def test_memory_is_flat_or_not():
    """Growth after the first two fifths counts, growth before it is warming up."""
    warming = [min(100 + 10 * i, 300) * MIB for i in range(100)]
    leaking = [(300 + 2 * i) * MIB for i in range(100)]
    assert early_and_late(warming[:10]) is None
    watch = Watch()
    watch.samples["verifier", 1] = warming
    watch.samples["drafter", 2] = leaking
    (line,) = watch.growth()
    assert line.startswith("drafter: memory grew from ")
