"""From slices to endpoints: whatever a control plane may write, in whatever order."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.discovery.fakes import endpoint, endpoint_slice
from slipstream.discovery.slices import Endpoint, found_in, zone_of


def found(*slices, port="50051", role=""):
    return found_in(slices, port, role).endpoints


@pytest.mark.parametrize(
    ("conditions", "listed", "draining"),
    [
        ({}, True, False),
        ({"ready": True}, True, False),
        ({"ready": False}, False, False),
        # As of a Service with publishNotReadyAddresses.
        ({"ready": True, "serving": False}, False, False),
        ({"ready": False, "serving": True, "terminating": True}, True, True),
        ({"ready": False, "serving": False, "terminating": True}, False, False),
        ({"ready": None, "serving": None, "terminating": None}, True, False),
    ],
)
def test_conditions(conditions, listed, draining):
    """Ready, not ready, terminating; what is not said counts as good."""
    one = {"addresses": ["10.0.0.1"], "conditions": conditions}
    there = found(endpoint_slice("v", [one]))
    assert there == ((Endpoint("10.0.0.1:50051", draining),) if listed else ())


def test_facts():
    """Zone, node and pod; of an endpoint without any, the address."""
    full = endpoint("10.0.0.1", zone="a", node="n", pod="v-0")
    slices = [endpoint_slice("v", [full, "10.0.0.2"]), endpoint_slice("v", [], name="empty")]
    assert found(*slices) == (
        Endpoint("10.0.0.1:50051", False, "a", "n", "v-0"),
        Endpoint("10.0.0.2:50051"),
    )
    # Two processes of one host, as where pods have the host's network.
    here = [endpoint_slice("v", ["10.0.0.1"], ports={"grpc": port}) for port in (1, 2)]
    assert [one.address for one in found(*here, port="grpc")] == ["10.0.0.1:1", "10.0.0.1:2"]
    assert found({"metadata": {}, "ports": None, "endpoints": None}) == ()


def test_ports():
    """By number or name; all ports where a slice has none; else it is said which there are."""
    one = endpoint_slice("v", ["10.0.0.1"], ports={"grpc": 50051, "metrics": 9400})
    assert found(one, port="metrics") == (Endpoint("10.0.0.1:9400"),)
    assert found(one, port="9400") == (Endpoint("10.0.0.1:9400"),)
    assert found(endpoint_slice("v", ["10.0.0.1"], ports={}), port="7") == (Endpoint("10.0.0.1:7"),)
    wrong = found_in([one], "80")
    assert wrong.endpoints == ()
    assert "no port 80, but grpc (50051), metrics (9400)" in wrong.wrong
    # A Service of no pods has no ports either.
    assert not found_in([endpoint_slice("v", [], ports={"other": 1})], "80").wrong


def test_roles():
    """A Service of another component is refused in words; one that names none is taken."""
    drafters = endpoint_slice("d", ["10.0.0.1"], component="drafter")
    wrong = found_in([drafters], "50051", "verifier")
    assert wrong.endpoints == ()
    assert wrong.wrong == "it is a Service of component drafter, and a verifier is wanted"
    assert len(found(drafters, role="drafter")) == len(found(drafters)) == 1
    assert found(endpoint_slice("v", ["10.0.0.1"]), role="verifier")


def test_two_families_are_one_pod():
    """A dual-stack pod is one endpoint, by IPv4; one with IPv6 alone is there too."""
    four = endpoint_slice("v", [endpoint("10.0.0.1", pod="v-0")])
    six = [endpoint("fd00::1", pod="v-0"), endpoint("fd00::2", pod="v-1")]
    both = found(endpoint_slice("v", six, name="six", family="IPv6"), four)
    assert [(one.address, one.pod) for one in both] == [
        ("10.0.0.1:50051", "v-0"), ("[fd00::2]:50051", "v-1"),
    ]  # fmt: skip


def test_an_address_with_a_new_pod():
    """A pod that got the address of one that still goes is the one that counts."""
    old = endpoint("10.0.0.1", pod="v-0", terminating=True, serving=True)
    new = endpoint("10.0.0.1", pod="v-9")
    for slices in ([old, new], [new, old]):
        assert found(endpoint_slice("v", slices)) == (Endpoint("10.0.0.1:50051", pod="v-9"),)


def test_the_own_zone():
    """Of the pod by its name, ready or not; nothing of others, or where none is told."""
    mine = endpoint("10.0.0.1", pod="me", zone="a", ready=False)
    slices = [endpoint_slice("v", [endpoint("10.0.0.2", pod="other", zone="b")]),
              endpoint_slice("v", [mine], name="second")]  # fmt: skip
    assert (zone_of(slices, "me"), zone_of(slices, "other"), zone_of(slices, "no")) == (
        "a",
        "b",
        "",
    )
    assert zone_of([endpoint_slice("v", [endpoint("10.0.0.1", pod="me")])], "me") == ""


PODS = st.lists(
    st.fixed_dictionaries({
        "host": st.integers(1, 6), "named": st.booleans(), "zone": st.sampled_from(["", "a", "b"]),
        "ready": st.booleans(), "terminating": st.booleans(), "six": st.booleans(),
    }), max_size=8,
)  # fmt: skip


def of_pods(pods):
    """(family, endpoint) of each; a pod is ready or not in all of its slices, as it is one pod."""
    for pod in pods:
        host, name = pod["host"], f"v-{pod['host']}" if pod["named"] else ""
        address = f"fd00::{host}" if pod["six"] else f"10.0.0.{host}"
        yield (
            "IPv6" if pod["six"] else "IPv4",
            endpoint(
                address, pod=name, zone=pod["zone"], ready=pod["ready"], serving=pod["ready"],
                terminating=pod["terminating"],
            ),
        )  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(PODS, st.randoms(use_true_random=False))
def test_merging(pods, random):
    """However the endpoints are spread over slices, and in whatever order these come: the same is
    found, each pod and address once, in order; it is not draining where no slice says so, and every
    pod that serves is among them."""
    placed = list(of_pods(pods))

    def spread():
        random.shuffle(placed)
        count = random.randint(1, 4)
        slices = [
            endpoint_slice("v", [], name=f"s{i}-{family}", family=family)
            for i in range(count)
            for family in ("IPv4", "IPv6")
        ]
        for family, one in placed:
            # At times in two, as while it moves.
            fit = [each for each in slices if each["addressType"] == family]
            for each in random.sample(fit, min(len(fit), random.randint(1, 2))):
                each["endpoints"].append(copy.deepcopy(one))
        random.shuffle(slices)
        return slices

    first, second = found(*spread()), found(*spread())
    assert first == second
    addresses = [one.address for one in first]
    assert addresses == sorted(set(addresses))
    named = [one.pod for one in first if one.pod]
    assert len(set(named)) == len(named)
    serving = [one for _, one in placed if one["conditions"]["serving"]]
    for one in serving:
        # The address that it is known by may have gone over to another pod.
        pod = one.get("targetRef", {}).get("name")
        own = [each for each in serving if pod and each.get("targetRef", {}).get("name") == pod]
        hosts = [each["addresses"][0] for each in own or [one]]
        assert pod in named or any(host in each for each in addresses for host in hosts)
    reachable = {one["addresses"][0] for one in serving}
    assert all(any(host in each for host in reachable) for each in addresses)
    for each in first:
        told = [
            one["conditions"]["terminating"] for _, one in placed
            if one.get("targetRef", {}).get("name", "") == each.pod
            and (each.pod or one["addresses"][0] in each.address)
        ]  # fmt: skip
        assert each.draining == any(told) or not each.draining
