"""Amounts in values: how they are read, and that those which contradict each other are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity

from tests.chart.helm import merged, refusal, template
from tests.chart.pods import option, pod_of
from tests.chart.values_schema import nested


def _at(path: str, value: Any) -> dict[str, Any]:
    return nested(tuple(path.split(".")), value)


# Near each other, equal in another spelling, and one of each suffix.
QUANTITIES = [
    "1", "1.0", "1000m", "999m", "0.999", "1001m", "1000000u", "999999999n", "1e0", "1E0",
    "0.0011k", "5e-1", "500m", "1k", "1e3", "1Ki", "1024", "1023", "1M", "1Mi", "1.0001Mi",
    "1048576", "0.5Gi", "512Mi", "537M", "1G", "1Gi", "1T", "1Ti", "1P", "1Pi", "1E", "1Ei",
    "1024Pi", "12e17",
]  # fmt: skip


def test_quantities_are_compared_as_kubernetes_would() -> None:
    """Of any two amounts, whatever their suffixes, a request above its limit is refused, and no
    other is: the client of Kubernetes says which are."""
    pairs = [(request, limit) for request in QUANTITIES for limit in QUANTITIES]
    resources = {
        "requests": {f"r{index}": request for index, (request, _) in enumerate(pairs)},
        "limits": {f"r{index}": limit for index, (_, limit) in enumerate(pairs)},
    }
    told = refusal({"gateway": {"resources": resources}})
    found = {int(index) for index in re.findall(r"resources\.requests\.r(\d+) ", told)}
    wanted = {
        index
        for index, (request, limit) in enumerate(pairs)
        if parse_quantity(request) > parse_quantity(limit)
    }
    assert {pairs[index] for index in found} == {pairs[index] for index in wanted}


CONTAINERS = (
    "gateway", "verifier", "drafter", "redis.bundled", "model.download", "tune", "tests",
)  # fmt: skip


def test_no_container_asks_for_more_than_it_may_take() -> None:
    """Each block with resources is looked at, and its own path is told."""
    values = merged(*(_at(f"{path}.resources.requests.memory", "99Gi") for path in CONTAINERS))
    told = refusal(values)
    for path in CONTAINERS:
        assert f"- {path}.resources.requests.memory 99Gi is more than {path}.resources" in told


def _certified(**times: str) -> dict[str, Any]:
    return _at("tls", {"enabled": True, "certManager": {"enabled": True, **times}})


def _in_memory(size: str | int) -> dict[str, Any]:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def _memory_volume(size: str) -> dict[str, Any]:
    return _at("gateway.extraVolumes", [_in_memory(size)])


# (values, what the chart says, the nearest values that it takes)
EDGES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (
        _at("redis.bundled.pdb.minAvailable", 1),
        "redis.bundled.pdb.minAvailable 1 of 1 pods lets none of them go",
        _at("redis.bundled.pdb.minAvailable", 0),
    ),
    (
        _at("gateway.updateStrategy.rollingUpdate", {"maxSurge": "0%", "maxUnavailable": 0}),
        "gateway.updateStrategy.rollingUpdate has 0 for both maxSurge and maxUnavailable",
        _at("gateway.updateStrategy.rollingUpdate", {"maxSurge": 0, "maxUnavailable": "1%"}),
    ),
    (
        _at("verifier.updateStrategy.rollingUpdate", {"maxUnavailable": 0}),
        "verifier.updateStrategy.rollingUpdate.maxUnavailable 0 lets no pod be renewed",
        _at("verifier.updateStrategy.rollingUpdate", {"maxUnavailable": 1}),
    ),
    (
        _at("drafter.resources.requests", {"example.org/nic": 1}),
        "drafter.resources.requests has example.org/nic 1, of which",
        _at("drafter.resources", {k: {"example.org/nic": 1} for k in ("requests", "limits")}),
    ),
    (
        _at("redis.bundled.maxMemory", "577mb"),
        "redis.bundled.maxMemory 577mb is more than three quarters of",
        _at("redis.bundled.maxMemory", "576mb"),
    ),
    (
        _at("redis.bundled.persistence.size", "1730Mi"),
        "redis.bundled.persistence.size 1730Mi is less than three times redis.bundled.maxMemory",
        _at("redis.bundled.persistence.size", "1728Mi"),
    ),
    (
        _at("verifier.kvCacheGib", 6),
        "verifier.kvCacheGib 6 leaves no room for the weights in verifier.resources.limits.memory",
        _at("verifier", {"kvCacheGib": 6, "gpu": {"count": 1}}),
    ),
    (
        _at("drafter.extraVolumes", [{"name": "more", "emptyDir": {}}]),
        "drafter.extraVolumes has the emptyDir more without a bound: give it a sizeLimit",
        _at("drafter.extraVolumes", [{"name": "more", "emptyDir": {"sizeLimit": "1Gi"}}]),
    ),
    (
        _at("verifier.extraVolumes", [{"name": "more", "emptyDir": None}]),
        "verifier.extraVolumes has the emptyDir more without a bound: give it a sizeLimit",
        _at("verifier.extraVolumes", [_in_memory(1 << 30)]),
    ),
    (
        _memory_volume("1024Mi"),
        "gateway.extraVolumes may take 1Gi of memory, which counts against",
        _memory_volume("1023Mi"),
    ),
    (
        _at("verifier.resources.limits.ephemeral-storage", "13311Mi"),
        "its volumes may hold: leave it out, or lower verifier.scratch or model.cache.size",
        _at("verifier.resources.limits.ephemeral-storage", "13Gi"),
    ),
    (
        _at("redis.bundled.resources.requests.ephemeral-storage", "321Mi"),
        "redis.bundled.resources.requests.ephemeral-storage is more than the limit of 320Mi",
        _at("redis.bundled.resources.requests.ephemeral-storage", "320Mi"),
    ),
    (
        _certified(renewBefore="91h", duration="90h59m60s"),
        "renewBefore 91h is not less than tls.certManager.duration 90h59m60s",
        _certified(renewBefore="91h", duration="90h59m61s"),
    ),
    (
        _certified(renewBefore="299s"),
        "less than cert-manager takes: 1h and 5m at least",
        _certified(renewBefore="5m"),
    ),
    (
        _certified(caDuration="1h"),
        "tls.certManager.caDuration 1h is less than tls.certManager.duration",
        _certified(caDuration="2160h"),
    ),
    (
        _at("monitoring.podMonitor.scrapeTimeout", "15s1ms"),
        "podMonitor.scrapeTimeout 15s1ms is more than monitoring.podMonitor.interval 15s",
        _at("monitoring.podMonitor.scrapeTimeout", "15000ms"),
    ),
    (
        _at("drafter.layerPlan.source", "tune") | _at("tune.budget", "4h"),
        "set it to 15000 at least, or tune.budget lower",
        _at("drafter.layerPlan.source", "tune") | _at("tune.budget", "230m"),
    ),
]


@pytest.fixture(scope="module")
def told() -> str:
    """What the chart says of all that is wrong, together where nothing is in the way of another."""
    batches: list[dict[str, Any]] = []
    for values, _, _ in EDGES:
        for index, batch in enumerate(batches):
            if merged(batch, values) == merged(values, batch):
                batches[index] = merged(batch, values)
                break
        else:
            batches.append(values)
    return "\n".join(refusal(batch) for batch in batches)


@pytest.mark.parametrize("message", [message for _, message, _ in EDGES])
def test_amounts_that_contradict_each_other_are_refused(told: str, message: str) -> None:
    """Just over the edge the chart says which values, why not, and what would be right."""
    assert message in told
    assert "values that cannot work together" in told


def test_amounts_just_within_are_taken() -> None:
    """The nearest amounts that can work together are refused by none of these rules."""
    taken: list[dict[str, Any]] = [{}]
    for _, _, values in EDGES:
        if merged(taken[-1], values) != merged(values, taken[-1]):
            taken.append({})
        taken[-1] = merged(taken[-1], values)
    assert [refusal(values) for values in taken] == [""] * len(taken)


@pytest.mark.parametrize(
    "resources",
    [
        None,
        {"requests": None, "limits": None},
        {"requests": {"cpu": 0.5, "memory": 536870912}, "limits": {"cpu": 1.5, "memory": 16e9}},
    ],
)
def test_resources_that_are_numbers_or_not_there(resources: dict[str, Any] | None) -> None:
    """YAML's own numbers, whole or not, are amounts, too; and no container needs resources."""
    assert refusal(merged(*(_at(f"{path}.resources", resources) for path in CONTAINERS))) == ""


def test_threads_are_the_limits_cpus() -> None:
    """Rounded up, however the limit is written."""
    limits = {"verifier": "25e-1", "drafter": "1500m"}
    render = template({role: {"resources": {"limits": {"cpu": limits[role]}}} for role in limits})
    assert [option(pod_of(render, role).main, "threads") for role in limits] == ["3", "2"]


MIXED = merged(
    _at("model.path", "/opt/m"),
    _at("redis.bundled.persistence.enabled", False),
    _at("drafter.resources.limits.ephemeral-storage", "5Gi"),
    _at(
        "gateway.extraVolumes",
        [
            {"name": "disk", "emptyDir": {"sizeLimit": "1G"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}},
        ],
    ),
)


@pytest.mark.parametrize(
    ("values", "disk"),
    [
        ({}, {"verifier": "13568Mi", "gateway": "1792Mi", "redis": "320Mi"}),
        (_at("model.cache.type", "perPod"), {"verifier": "3328Mi", "gateway": "1792Mi"}),
        (_at("model.cache.type", "shared"), {"verifier": "3328Mi", "gateway": "1536Mi"}),
        (
            MIXED,
            {"verifier": "3329Mi", "redis": "2368Mi", "drafter": "5Gi", "gateway": "2491Mi"},
        ),
    ],
)
def test_the_disk_is_what_the_volumes_hold(values: dict[str, Any], disk: dict[str, str]) -> None:
    """Asked for and limited: the sizes of the volumes on the node's disk, and 256Mi for logs; what
    is in a claim or in memory is not on it. An amount of one's own goes before that."""
    render = template(values)
    for role, amount in disk.items():
        for container in pod_of(render, role).every_container:
            needs = container["resources"]
            assert needs["limits"]["ephemeral-storage"] == amount
            assert needs["requests"]["ephemeral-storage"] == amount
