"""The NetworkPolicies let exactly the drawn arrows through: none is missing, and none is more."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.chart import combos
from tests.chart.helm import Render, merged, template
from tests.chart.network import UNUSED, Arrow, Endpoint, Policies, arrows, endpoints, policies
from tests.chart.pods import pods

NOTHING = {"unused": ("TCP", UNUSED)}
NEIGHBOUR = Endpoint("neighbour", "10.244.1.1", NOTHING, "models", {"app": "web"})
CLIENT = Endpoint("client", "10.244.1.2", NOTHING, "apps", {"app": "chat"})
STRANGER = Endpoint("stranger", "10.244.1.3", NOTHING, "apps", {"app": "stranger"})
PROMETHEUS = Endpoint("prometheus", "10.244.1.4", NOTHING, "monitoring", {"app": "prometheus"})
DNS = Endpoint(
    "dns",
    "10.244.1.5",
    {"udp": ("UDP", 53), "tcp": ("TCP", 53), "metrics": ("TCP", 9153)},
    "kube-system",
    {"k8s-app": "kube-dns"},
)
COLLECTOR = Endpoint(
    "collector", "10.244.1.6", {"otlp": ("TCP", 4317), **NOTHING}, "observability", {"app": "otel"}
)
WEB = {"https": ("TCP", 443), "http": ("TCP", 80), "ssh": ("TCP", 22), **NOTHING}
API_SERVER = Endpoint("api server", "10.96.0.1", WEB, host=True)
HUB = Endpoint("hub", "198.51.100.7", WEB, host=True)
REDIS_HOST = Endpoint("redis host", "192.0.2.7", {"redis": ("TCP", 6379), **WEB}, host=True)
OUTSIDE = (
    NEIGHBOUR, CLIENT, STRANGER, PROMETHEUS, DNS, COLLECTOR, API_SERVER, HUB, REDIS_HOST,
)  # fmt: skip


def drawn(row: Mapping[str, str]) -> set[Arrow]:
    """The arrows of docs/kubernetes.md for a row of options, between what is there in it."""
    told = {name: next(iter(settings)) for name, settings in combos.OPTIONS.items()} | dict(row)
    drafter, sharded = told["shards"] != "off", told["shards"] == "2"
    roles = ["gateway", "verifier", *(["drafter"] if drafter else [])]
    there = [*roles, "test"]
    found: set[Arrow] = {
        ("client", "gateway", "http"),
        ("client", "gateway", "grpc"),
        ("test", "gateway", "http"),
        ("gateway", "verifier", "grpc"),
        ("verifier", "verifier", "grpc"),
        ("prometheus", "gateway", "http"),
        ("prometheus", "verifier", "metrics"),
    }
    if drafter:
        found |= {("verifier", "drafter", "grpc"), ("drafter", "verifier", "grpc")}
        found.add(("prometheus", "drafter", "metrics"))
    if sharded:
        found.add(("drafter", "drafter", "grpc"))
    if told["redis"] == "bundled":
        there.append("redis")
        found.add(("gateway", "redis", "redis"))
    elif told["redis"] != "none":
        found.add(("gateway", "redis host", "redis"))
    watching = {*roles} if told["discovery"] == "kubernetes" else set()
    if told["cache"] in ("shared", "claim"):
        there.append("model-download")
    if told["plan"] == "tune" and drafter:
        there.append("tune")
        watching.add("tune")
    # Whoever needs the model fetches it where it is not there yet; a folder that is given is.
    if told["cache"] != "path":
        found |= {(pod, "hub", "https") for pod in there if pod not in ("test", "redis")}
    found |= {(pod, "api server", "https") for pod in watching}
    found |= {(pod, "dns", port) for pod in there for port in ("udp", "tcp")}
    if told["traces"] == "on":
        found |= {(pod, "collector", "otlp") for pod in roles}
    return found


def _graph(render: Render) -> set[Arrow]:
    return arrows(policies(render), endpoints(render), OUTSIDE)


def _same(found: set[Arrow], wanted: set[Arrow]) -> None:
    assert (sorted(found - wanted), sorted(wanted - found)) == ([], []), "(extra, missing)"


ROWS = {combos.label_of(row): row for row in combos.rows() if row["policies"] == "on"}


@pytest.mark.parametrize("label", ["", *ROWS])
def test_exactly_the_drawn_arrows(label: str) -> None:
    """Where the neighbours are known the graph of each combination is the drawn one."""
    row = ROWS.get(label, {})
    _same(_graph(combos.render_of(row)), drawn(row))


def test_drafters_that_compute_their_own_context_ask_no_verifier() -> None:
    """Without a pull of keys and values the arrow back to the verifiers is gone."""
    render = template(merged(combos.SURROUNDINGS, {"drafter": {"kvContext": "own"}}))
    _same(_graph(render), drawn({}) - {("drafter", "verifier", "grpc")})


def test_without_policies_everything_is_open() -> None:
    """The graph is that of the policies: without them everyone reaches everyone."""
    render = template({"networkPolicy": {"enabled": False}})
    assert ("stranger", "redis", "redis") in _graph(render)


def test_defaults_say_anywhere_by_port_only() -> None:
    """With nothing told of the surroundings, hub and API server are any host, on their ports; the
    namespace's own pods reach the gateway; no one else does anything more."""
    found = _graph(template())
    known = drawn({})
    inside = {"gateway", "verifier", "drafter", "redis", "test"}
    more = found - known
    assert {port for source, target, port in more if source in inside} <= {"https"}
    incoming = {(source, target, port) for source, target, port in more if target in inside}
    assert incoming == {
        ("neighbour", "gateway", "http"),
        ("neighbour", "gateway", "grpc"),
    }


def test_two_releases_in_one_namespace_do_not_meet() -> None:
    """Pods of another release have the same components, and no arrow leads to or from them."""
    one, other = template(combos.SURROUNDINGS), template(combos.SURROUNDINGS, release="other")
    both = Policies((*one.of("NetworkPolicy"), *other.of("NetworkPolicy")))
    theirs = [replace(point, name=f"other {point.name}") for point in endpoints(other)]
    found = arrows(both, [*endpoints(one), *theirs], OUTSIDE)
    crossing = {
        (source, target, port)
        for source, target, port in found
        if source.startswith("other ") != target.startswith("other ")
        and {source.removeprefix("other "), target.removeprefix("other ")}
        <= {point.name for point in endpoints(one)}
    }
    assert crossing == set()


def test_every_pod_is_isolated_both_ways() -> None:
    """No pod of a release is without a policy of each direction, whatever job it is of."""
    render = template(combos.values_of({"plan": "tune", "cache": "shared"}))
    rules = policies(render)
    for point in endpoints(render):
        assert not rules.allow(STRANGER, point, "unused"), point.name
        assert not rules.allow(point, STRANGER, "unused"), point.name
    assert len(pods(render)) == len(endpoints(render)) >= 7


@pytest.mark.parametrize("role", ["gateway", "verifier", "drafter", "redis"])
def test_a_policy_that_is_lost_shows(role: str) -> None:
    """Without the role's policy the graph is another one: the comparison would fail."""
    render = template(combos.SURROUNDINGS)
    kept = tuple(
        item
        for item in copy.deepcopy(render.objects)
        if item["kind"] != "NetworkPolicy"
        or item["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component")
        != role
    )
    assert len(kept) < len(render.objects)
    assert _graph(Render("", kept)) != drawn({})
