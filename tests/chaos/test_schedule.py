"""The schedule of faults: reproducible, and never more at once than its rules allow."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest

from tests.chaos.schedule import KINDS, Fault, schedule
from tests.chaos.topology import STORE, Topology, ends, is_sealed, role_of

SEEDS = range(8)
TWO = Topology()


def first(count, seed, topology=TWO, **how):
    return list(islice(schedule(seed, topology, **how), count))


def takes_away(fault: Fault) -> list[str]:
    """Verifiers that a gateway loses by it."""
    if fault.kind == "blackout":
        return ["verifier-0", "verifier-1"]
    if role_of(fault.target) == "verifier":
        return [fault.target]
    if role_of(fault.target) == "link" and fault.kind != "delay":
        one, other = ends(fault.target)
        return [other] if one.startswith("gateway") and other.startswith("verifier") else []
    return []


def test_a_seed_says_everything():
    """The same seed gives the same faults, another seed others; they come in order, every two
    seconds or so, and each kind does within a few hundred."""
    faults = first(400, 7)
    assert faults == first(400, 7) != first(400, 8)
    assert all(a.at < b.at for a, b in pairwise(faults))
    assert 1.5 < faults[-1].at / len(faults) < 3.0
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {role_of(f.target) for f in faults} >= {"gateway", "verifier", "drafter", STORE, "link"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_verifier_is_left(seed):
    """Whenever one verifier goes away, the other one has been well for as long as it takes to come
    back; both go only together, in a blackout, from which both are started again at once."""
    well = {"verifier-0": 0.0, "verifier-1": 0.0}
    for fault in first(400, seed):
        gone = takes_away(fault)
        if fault.kind == "blackout":
            assert max(well.values()) <= fault.at
            assert fault.seconds <= 1.0
        elif gone:
            (other,) = {"verifier-0", "verifier-1"} - set(gone)
            assert well[other] <= fault.at
        start = 12.0 if fault.kind in ("kill", "term", "blackout") else 0.0
        for name in gone:
            well[name] = max(well[name], fault.at + fault.seconds + start)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_costs_much_is_rare(seed):
    """Starts of processes that load torch, losses of all that is stored, and troubles of the store
    keep their distance; nothing is hit again before it is well."""
    faults = first(400, seed)
    torch = [
        f.at
        for f in faults
        if f.kind in ("kill", "term", "blackout") and f.target.startswith(("verifier", "drafter"))
    ]
    assert all(b - a >= 7.0 for a, b in pairwise(torch))
    empty = [fault.at for fault in faults if fault.kind == "empty"]
    assert all(b - a >= 40.0 for a, b in pairwise(empty))
    store = [fault.at for fault in faults if STORE in fault.target]
    assert all(b - a > 24.9 for a, b in pairwise(store))
    well: dict[str, float] = {}
    for fault in faults:
        assert well.get(fault.target, 0.0) <= fault.at
        well[fault.target] = fault.at + fault.seconds


def test_bytes_change_only_where_that_is_noticed():
    """Corruption spares what carries no checksums: HTTP, gRPC clients' links and Redis'."""
    hit = {fault.target for fault in first(2000, 1, kinds=("corrupt",))}
    assert hit == {name for name in Topology().links if is_sealed(name)}
    assert not any("client" in name or STORE in name for name in hit)


def test_only_what_was_asked_for():
    """Kinds and roles can be chosen; a store that is a file cannot be killed; one verifier alone
    is hit, too, and then left until it is back."""
    faults = first(50, 3, kinds=("kill", "stop"), roles=("drafter",))
    assert {(f.kind, role_of(f.target)) for f in faults} == {
        ("kill", "drafter"),
        ("stop", "drafter"),
    }
    assert all(STORE not in f.target for f in first(300, 3, Topology(redis=False)))
    alone = first(100, 3, Topology(1, 1, 0), roles=("verifier",))
    assert all(b.at - a.at - a.seconds >= 3.0 for a, b in pairwise(alone))
    assert list(islice(schedule(1, Topology(), kinds=()), 1)) == []
