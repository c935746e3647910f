"""Wrong values are refused before anything is installed, with a message that says which and why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.helm import merged, refusal
from tests.chart.values_schema import nested


def _at(path: str, value: Any) -> dict[str, Any]:
    return nested(tuple(path.split(".")), value)


# (value, what it is set to, what helm says of it)
WRONG: list[tuple[str, Any, str]] = [
    ("gatway.replicas", 2, "additional properties 'gatway' not allowed"),
    ("gateway.replica", 2, "additional properties 'replica' not allowed"),
    ("gateway.replicas", 0, "minimum: got 0, want 1"),
    ("gateway.replicas", "two", "got string, want integer"),
    ("gateway.replicas", 1.5, "got number, want integer"),
    ("gateway.service.type", "ExternalName", "value must be one of 'ClusterIP', 'NodePort'"),
    ("gateway.service.httpPort", 70000, "maximum: got 70,000, want 65,535"),
    ("gateway.extraArgs", "--log-level=debug", "got string, want array"),
    ("gateway.extraEnv", {"A": "b"}, "got object, want array"),
    ("gateway.extraEnv", [{"value": "b"}], "missing property 'name'"),
    ("gateway.extraEnv", [{"name": "A", "value": 1}], "got number, want string"),
    ("gateway.stopGraceSeconds", -1, "minimum: got -1, want 0"),
    ("gateway.probes.liveness.periodSeconds", 0, "minimum: got 0, want 1"),
    ("gateway.probes.liveness.exec", {}, "additional properties 'exec' not allowed"),
    ("gateway.podLabels", {"tier": 1}, "got number, want string"),
    ("commonLabels", {"team": "a b"}, "does not match pattern"),
    ("verifier.extraArgs", ["max-wait=5"], "does not match pattern '^--[a-z]'"),
    ("gateway.tolerations", {"key": "x"}, "got object, want array"),
    ("gateway.pdb.maxUnavailable", "some", "does not match pattern"),
    ("gateway.autoscaling.metrics", [], "minItems: got 0, want 1"),
    ("image.pullPolicy", "Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
    ("image.variant", "rocm", "value must be one of 'auto', 'cpu', 'cuda'"),
    ("verifier.image.tag", "v1 beta", "does not match pattern"),
    ("verifier.image.digest", "sha256:abc", "does not match pattern"),
    ("verifier.gpu", 1, "got number, want object"),
    ("verifier.gpu.resource", "gpu", "does not match pattern"),
    ("verifier.gpu.count", -1, "minimum: got -1, want 0"),
    ("verifier.precision", "fp8", "value must be one of 'native', 'int8'"),
    ("verifier.exactness", "exact", "value must be one of 'auto', 'fast', 'strict'"),
    ("verifier.dtype", "float16", "value must be one of 'auto', 'bfloat16', 'float32'"),
    ("verifier.kvCacheGib", 0, "exclusiveMinimum: got 0, want 0"),
    ("verifier.kvCacheGib", "2Gi", "got string, want number"),
    ("verifier.resources.requests.memory", "4 GB", "does not match pattern"),
    ("verifier.resources.gpu", 1, "additional properties 'gpu' not allowed"),
    ("verifier.topologySpread", [{"topologyKey": "zone"}], "missing properties 'maxSkew'"),
    ("drafter.shards", 0, "minimum: got 0, want 1"),
    ("drafter.replicas", -1, "minimum: got -1, want 0"),
    ("drafter.layerPlan.source", "best", "value must be one of 'auto', 'adaptive', 'configMap'"),
    ("tune.budget", "0m", "does not match pattern"),
    ("drafter.kvContext", "all", "value must be one of 'own', 'prompt', 'commit'"),
    ("drafter.colocation", True, "value must be one of 'preferred', 'required', 'off'"),
    ("model.name", 7, "got number, want string"),
    ("model.path", "models/llama", "does not match pattern"),
    ("model.cache.type", "pvc", "value must be one of 'ephemeral', 'perPod', 'shared'"),
    ("model.cache.size", "10 GB", "does not match pattern"),
    ("model.cache.accessModes", ["RWX"], "value must be one of 'ReadWriteMany'"),
    ("redis.mode", "sentinel", "value must be one of 'bundled', 'external', 'none'"),
    ("redis.external.url", "redis.example.org:6379", "does not match pattern"),
    ("discovery.mode", "consul", "value must be one of 'kubernetes', 'dns'"),
    ("tls.certManager.duration", "90 days", "does not match pattern"),
    ("networkPolicy.apiServer.cidrs", ["10.0.0.1"], "does not match pattern"),
    ("networkPolicy.gatewayFrom", ["ingress-nginx"], "got string, want object"),
    ("networkPolicy.dns.ports", [], "minItems: got 0, want 1"),
    ("telemetry.otlpEndpoint", "collector:4317", "does not match pattern"),
    ("bindAddress", "127.0.0.1", "value must be one of '0.0.0.0', '::'"),
    ("fullnameOverride", "My_Release", "does not match pattern"),
    ("security.runAsUser", 0, "minimum: got 0, want 1"),
]


def _overlap(one: str, two: str) -> bool:
    return f"{one}.".startswith(f"{two}.") or f"{two}.".startswith(f"{one}.")


@pytest.fixture(scope="module")
def told() -> dict[int, str]:
    """What helm says of each of WRONG, by its index. It tells all that a schema has against values
    at once, so that those that do not touch each other are asked together."""
    batches: list[list[int]] = []
    for index, (path, _, _) in enumerate(WRONG):
        for batch in batches:
            if not any(_overlap(path, WRONG[other][0]) for other in batch):
                batch.append(index)
                break
        else:
            batches.append([index])
    found = {}
    for batch in batches:
        text = refusal(merged(*(_at(*WRONG[index][:2]) for index in batch)))
        assert "values don't meet the specifications of the schema" in text
        found |= dict.fromkeys(batch, text)
    return found


@pytest.mark.parametrize("index", range(len(WRONG)), ids=[f"{p}={v}"[:50] for p, v, _ in WRONG])
def test_schema_refuses(told: dict[int, str], index: int) -> None:
    """The schema names the value's place, and says what would be right."""
    path, _, message = WRONG[index]
    place = "/".join(["", *path.split(".")])
    if "additional properties" in message:
        # It is the group that the schema speaks of, and the message that has the name.
        place = ""
    lines = [line.strip() for line in told[index].splitlines()]
    here = [line for line in lines if line.startswith(f"- at '{place}")]
    found = any(message in line for line in here)
    assert found, here or lines


# (values, what the chart says): each fits the schema, and cannot work.
TOGETHER: list[tuple[dict[str, Any], str]] = [
    (_at("model.name", "a model"), "names no model: give default, or owner/name"),
    (_at("model.cache.existingClaim", "mine"), "set model.cache.type to shared"),
    (_at("model.path", "/models/x"), "name the claim that holds the model"),
    (
        merged(_at("image.variant", "cpu"), _at("verifier.gpu.count", 1)),
        "image.variant cpu has an image without CUDA",
    ),
    (
        merged(_at("redis.mode", "none"), _at("gateway.replicas", 2)),
        "redis.mode none keeps sessions in one gateway",
    ),
    (
        merged(_at("redis.mode", "none"), _at("gateway.autoscaling.enabled", True)),
        "redis.mode none keeps sessions in one gateway, but there may be 6",
    ),
    (_at("redis.mode", "external"), "redis.mode external needs redis.external.url"),
    (
        _at("redis", {"mode": "external", "external": {"url": "redis://:$(REDIS_PASSWORD)@r:1"}}),
        "no Secret holds it",
    ),
    (
        _at(
            "redis",
            {"mode": "external", "external": {"url": "redis://r:1", "existingSecret": "mine"}},
        ),
        "redis.external.existingSecret is not used",
    ),
    (_at("gateway.apiKeys.generate", False), "the gateway serves other machines with API keys"),
    (_at("gateway.apiKeys.clearKey", "keys"), "the first holds hashes"),
    (
        _at("drafter", {"shards": 2, "layerPlan": {"source": "adaptive"}}),
        "adaptive needs a drafter in one piece",
    ),
    (
        _at("drafter", {"shards": 2, "autoscaling": {"enabled": True}}),
        "a scaler adds single pods, not rows of 2",
    ),
    (_at("drafter.layerPlan.source", "configMap"), "needs the ConfigMap's name"),
    (_at("tls.enabled", True), "tls.enabled needs certificates"),
    (_at("tls.certManager.enabled", True), "a certificate that nobody uses: set tls.enabled"),
    (
        _at("tls", {"enabled": True, "existingSecret": "mine", "certManager": {"enabled": True}}),
        "two sources of one certificate",
    ),
    (_at("gateway.ingress.enabled", True), "name them in networkPolicy.gatewayFrom"),
    (_at("gateway.httpRoute.enabled", True), "name them in networkPolicy.gatewayFrom"),
    (_at("gateway.service.type", "LoadBalancer"), "name their addresses in networkPolicy"),
    (
        merged(_at("monitoring.podMonitor.enabled", True), _at("networkPolicy.metricsFrom", [])),
        "name its namespace in networkPolicy.metricsFrom",
    ),
    (_at("verifier.keda.enabled", True), "set monitoring.prometheusAddress"),
    (
        _at("verifier", {"keda": {"enabled": True}, "autoscaling": {"enabled": True}}),
        "would both scale the same pods",
    ),
    (
        _at("verifier.autoscaling", {"enabled": True, "minReplicas": 5, "maxReplicas": 2}),
        "minReplicas 5 is more than maxReplicas 2",
    ),
    (_at("gateway.service.grpcPort", 8000), "httpPort and gateway.service.grpcPort are both 8000"),
    (_at("gateway.pdb.minAvailable", 1), "minAvailable 1 of 1 pods lets none of them go"),
    (_at("gateway.pdb.minAvailable", "100%"), "lets none of them go"),
    (
        _at("verifier", {"replicas": 2, "pdb": {"minAvailable": "51%"}}),
        "minAvailable 51% of 2 pods lets none of them go",
    ),
    (_at("drafter.pdb.maxUnavailable", 0), "lets no pod go"),
]


@pytest.mark.parametrize(("values", "message"), TOGETHER, ids=[text for _, text in TOGETHER])
def test_combinations_are_refused(values: dict[str, Any], message: str) -> None:
    """Values that cannot work together are refused, with what would."""
    told = refusal(values)
    assert message in told
    assert "values that cannot work together" in told


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Two combinations that cannot work are two lines of one message."""
    told = refusal(merged(_at("tls.enabled", True), _at("gateway.apiKeys.generate", False)))
    assert told.count("\n- ") == 2


@pytest.mark.parametrize("release", ["2nd", "team.chat"])
def test_a_release_without_names_for_services(release: str) -> None:
    """helm takes release names that no Service can begin with: the chart asks for another name."""
    assert "set fullnameOverride" in refusal({}, release=release)
    assert refusal({"fullnameOverride": "chat"}, release=release) == ""
