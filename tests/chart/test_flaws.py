"""Each policy notices what it is there for: a release with one flaw breaks it, and only then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.chart import schemas
from tests.chart.combos import values_of
from tests.chart.helm import Object, Render, merged, template
from tests.chart.policies import availability, references, security, wiring

VERIFIER = ("StatefulSet", "slipstream-verifier")
GATEWAY = ("Deployment", "slipstream-gateway")
# A release with everything that the flaws touch.
WHOLE = merged(
    values_of({"replicas": "three", "monitoring": "on", "routes": "ingress", "cache": "shared"}),
    {"gateway": {"autoscaling": {"enabled": True}}, "drafter": {"replicas": 1}},
)


def _pod(item: Object) -> Any:
    return item["spec"]["template"]["spec"]


def _main(item: Object) -> Any:
    return _pod(item)["containers"][0]


def _set(path: str, value: Any) -> Callable[[Object], None]:
    """Sets a dotted path in an object; `[0]` is the first container."""

    def change(item: Object) -> None:
        *keys, last = path.split(".")
        place: Any = item
        for key in keys:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


POD = "spec.template.spec"
MAIN = f"{POD}.containers.0"
LABELS = "spec.template.metadata.labels"
COMPONENT = "app.kubernetes.io/component"


def _label(key: str, value: str) -> Callable[[Object], None]:
    def change(item: Object) -> None:
        item["spec"]["template"]["metadata"]["labels"][key] = value

    return change


def _argument(old: str, new: str) -> Callable[[Object], None]:
    def change(item: Object) -> None:
        container = _main(item)
        container["args"] = [new if a.startswith(old) else a for a in container["args"]]

    return change


def _append(path: str, value: Any) -> Callable[[Object], None]:
    def change(item: Object) -> None:
        place: Any = item
        for key in path.split("."):
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, [])
        place.append(value)

    return change


# Policy, object and flaw.
FLAWS: list[tuple[Any, tuple[str, str], Callable[[Object], None]]] = [
    (security.pods_are_restricted, VERIFIER, _set(f"{POD}.securityContext.runAsNonRoot", False)),
    (security.pods_are_restricted, VERIFIER, _set(f"{POD}.hostNetwork", True)),
    (
        security.pods_are_restricted,
        VERIFIER,
        _append(f"{POD}.volumes", {"name": "x", "hostPath": {"path": "/"}}),
    ),
    (
        security.containers_are_restricted,
        VERIFIER,
        _set(f"{MAIN}.securityContext.readOnlyRootFilesystem", False),
    ),
    (
        security.containers_are_restricted,
        VERIFIER,
        _set(f"{POD}.initContainers.0.securityContext.capabilities", {"add": ["SYS_ADMIN"]}),
    ),
    (security.no_shell_is_run, VERIFIER, _set(f"{MAIN}.command", ["sh", "-c", "exec python"])),
    (security.no_shell_is_run, VERIFIER, _set(f"{MAIN}.command", None)),
    (security.images_are_pinned, VERIFIER, _set(f"{MAIN}.image", "host:5000/verifier")),
    (security.images_are_pinned, VERIFIER, _set(f"{MAIN}.image", "verifier:latest")),
    (
        security.tokens_are_mounted_only_with_rights,
        ("StatefulSet", "slipstream-redis"),
        _set(f"{POD}.automountServiceAccountToken", True),
    ),
    (
        security.rights_are_least,
        ("Role", "slipstream-discovery"),
        _append("rules", {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
    ),
    (
        security.roles_are_bound_to_accounts_that_exist,
        ("RoleBinding", "slipstream-discovery"),
        _set("roleRef.name", "other"),
    ),
    (
        security.secret_variables_are_references,
        GATEWAY,
        _append(f"{MAIN}.env", {"name": "REDIS_PASSWORD", "value": "hunter2"}),
    ),
    (
        security.secrets_are_nowhere_else,
        GATEWAY,
        _append(f"{MAIN}.env", {"name": "URL", "value": "redis://:hunter2@redis:6379"}),
    ),
    (
        security.every_pod_has_an_account_of_its_own_role,
        VERIFIER,
        _set(f"{POD}.serviceAccountName", "slipstream-gateway"),
    ),
    (availability.probes_have_budgets, VERIFIER, _set(f"{MAIN}.livenessProbe", None)),
    (
        availability.probes_have_budgets,
        VERIFIER,
        _set(f"{MAIN}.readinessProbe.timeoutSeconds", None),
    ),
    (
        availability.probes_ask_the_right_thing,
        VERIFIER,
        _set(f"{MAIN}.livenessProbe.grpc.service", "readiness"),
    ),
    (
        availability.probes_ask_the_right_thing,
        GATEWAY,
        _set(f"{MAIN}.readinessProbe.httpGet.path", "/health"),
    ),
    (
        availability.loading_is_given_time,
        VERIFIER,
        _set(f"{MAIN}.startupProbe.failureThreshold", 3),
    ),
    (availability.graces_add_up, VERIFIER, _set(f"{POD}.terminationGracePeriodSeconds", 30)),
    (availability.graces_add_up, GATEWAY, _argument("--stop-grace", "--stop-grace=600")),
    (availability.resources_are_stated, VERIFIER, _set(f"{MAIN}.resources.limits.memory", None)),
    (
        availability.resources_are_stated,
        VERIFIER,
        _set(f"{POD}.initContainers.0.resources.limits.ephemeral-storage", None),
    ),
    (
        availability.volumes_are_bounded,
        VERIFIER,
        _append(f"{POD}.volumes", {"name": "x", "emptyDir": {}}),
    ),
    (
        availability.volumes_are_bounded,
        VERIFIER,
        _append(f"{POD}.volumes", {"name": "x", "emptyDir": {"sizeLimit": "300Mi"}}),
    ),
    (
        availability.volumes_are_bounded,
        VERIFIER,
        _append(
            f"{POD}.volumes", {"name": "x", "emptyDir": {"sizeLimit": "6Gi", "medium": "Memory"}}
        ),
    ),
    (
        availability.requests_are_within_limits,
        VERIFIER,
        _set(f"{MAIN}.resources.requests.memory", "6145Mi"),
    ),
    (
        availability.disruption_is_budgeted,
        ("PodDisruptionBudget", "slipstream-verifier"),
        _set("spec.maxUnavailable", 0),
    ),
    (
        availability.disruption_is_budgeted,
        ("PodDisruptionBudget", "slipstream-verifier"),
        _set("spec.selector.matchLabels.x", "y"),
    ),
    (availability.replicas_are_spread, VERIFIER, _set(f"{POD}.topologySpreadConstraints", [])),
    (
        availability.replicas_are_spread,
        VERIFIER,
        _set(f"{POD}.topologySpreadConstraints.0.nodeTaintsPolicy", None),
    ),
    (
        availability.drafters_seek_their_verifiers,
        ("StatefulSet", "slipstream-drafter"),
        _set(f"{POD}.affinity", {}),
    ),
    (
        availability.rollouts_keep_capacity,
        GATEWAY,
        _set("spec.strategy.rollingUpdate.maxUnavailable", 1),
    ),
    (availability.scalers_own_the_replicas, GATEWAY, _set("spec.replicas", 2)),
    (wiring.names_are_valid_and_single, GATEWAY, _set("metadata.name", "slipstream_gateway")),
    (wiring.names_are_valid_and_single, GATEWAY, _set("metadata.namespace", "default")),
    (wiring.labels_are_complete, GATEWAY, _set("metadata.labels", {})),
    (wiring.workloads_select_their_own_pods, VERIFIER, _label(COMPONENT, "drafter")),
    (
        wiring.services_reach_one_role,
        ("Service", "slipstream-gateway"),
        _set("spec.ports.0.targetPort", "https"),
    ),
    (
        wiring.services_reach_one_role,
        ("Service", "slipstream-gateway"),
        _set("spec.selector", {"app.kubernetes.io/instance": "slipstream"}),
    ),
    (
        wiring.stateful_pods_have_a_headless_service,
        ("Service", "slipstream-verifier"),
        _set("spec.clusterIP", None),
    ),
    (wiring.listeners_are_declared, VERIFIER, _argument("--health", "--health=0.0.0.0:50062")),
    (
        wiring.ports_have_names_of_their_own,
        VERIFIER,
        _append(f"{MAIN}.ports", {"name": "grpc", "containerPort": 1}),
    ),
    (
        wiring.probes_and_monitors_name_ports_that_exist,
        ("PodMonitor", "slipstream"),
        _set("spec.podMetricsEndpoints.0.port", "prometheus"),
    ),
    (
        wiring.probes_and_monitors_name_ports_that_exist,
        ("ServiceMonitor", "slipstream"),
        _set("spec.selector.matchLabels.x", "y"),
    ),
    (
        wiring.routes_lead_to_services,
        ("Ingress", "slipstream-gateway"),
        _set("spec.rules.0.http.paths.0.backend.service.name", "gateway"),
    ),
    (
        wiring.affinities_name_pods_of_the_release,
        ("StatefulSet", "slipstream-drafter"),
        _set(
            f"{POD}.affinity.podAffinity.preferredDuringSchedulingIgnoredDuringExecution.0"
            ".podAffinityTerm.labelSelector.matchLabels",
            {"app.kubernetes.io/name": "slipstream", COMPONENT: "verifier"},
        ),
    ),
    (
        wiring.policies_and_budgets_select_pods,
        ("NetworkPolicy", "slipstream-gateway"),
        _set("spec.podSelector.matchLabels", {"app": "gateway"}),
    ),
    (
        wiring.policies_and_budgets_select_pods,
        ("NetworkPolicy", "slipstream-gateway"),
        _set("spec.ingress.0.ports.0.port", 8080),
    ),
    (
        references.volumes_are_there_and_used,
        VERIFIER,
        _append(f"{MAIN}.volumeMounts", {"name": "x", "mountPath": "/x"}),
    ),
    (
        references.volumes_are_there_and_used,
        VERIFIER,
        _append(f"{POD}.volumes", {"name": "x", "emptyDir": {}}),
    ),
    (
        references.references_lead_somewhere,
        ("Secret", "slipstream-api-keys"),
        _set("data", {"other": "eA=="}),
    ),
    (
        references.references_lead_somewhere,
        ("PersistentVolumeClaim", "slipstream-models"),
        _set("metadata.name", "models"),
    ),
    (
        references.what_the_release_makes_is_used,
        ("PersistentVolumeClaim", "slipstream-models"),
        _set("metadata.name", "models"),
    ),
    (
        references.pods_restart_for_their_config,
        ("StatefulSet", "slipstream-redis"),
        _set("spec.template.metadata.annotations", {}),
    ),
]


@pytest.mark.parametrize(
    ("policy", "key", "flaw"),
    FLAWS,
    ids=[f"{policy.__name__}-{index}" for index, (policy, _, _) in enumerate(FLAWS)],
)
def test_a_flaw_breaks_the_policy(
    policy: Any, key: tuple[str, str], flaw: Callable[[Object], None]
) -> None:
    """The policy holds for a whole release, and no longer for the same one with a flaw."""
    good = template(WHOLE)
    assert list(policy(good)) == []
    objects = copy.deepcopy(good.objects)
    (item,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == key)
    flaw(item)
    assert list(policy(Render("", objects)))


def test_every_policy_has_a_flaw() -> None:
    """No policy is without a release that breaks it."""
    every = {*security.POLICIES, *availability.POLICIES, *wiring.POLICIES, *references.POLICIES}
    assert {policy for policy, _, _ in FLAWS} == every


@pytest.mark.parametrize("version", schemas.VERSIONS)
@pytest.mark.parametrize(
    "flaw",
    [
        _set(f"{MAIN}.imagePullPolice", "Always"),
        _set(f"{MAIN}.livenessProbe.grpc.port", "health"),
        _set("spec.podManagmentPolicy", "Parallel"),
        _set("spec.replicas", "two"),
    ],
    ids=["unknown", "type", "typing error", "text"],
)
def test_schemas_notice(version: str, flaw: Callable[[Object], None]) -> None:
    """A field that is unknown deep inside, or of another type, is a fault in each version."""
    item = copy.deepcopy(template().get(*VERIFIER))
    assert schemas.faults(item, version) == []
    flaw(item)
    assert schemas.faults(item, version)


def test_a_kind_without_a_schema_is_a_fault() -> None:
    """What no schema is known of is not let through."""
    item = {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "x"}}
    assert schemas.faults(item, "1.37") == ["no schema for example.org/v1 Thing in 1.37"]
