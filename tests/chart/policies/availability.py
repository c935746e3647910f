"""What keeps a release answering: probes, drains, budgets of disruption, spread, resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from tests.chart.helm import Object, Render, name_of
from tests.chart.pods import ROLES, Pod, containers, option, pods, selected

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# Between the end of the drain and the kubelet's SIGKILL.
MARGIN = 5


def serving(render: Render) -> list[Pod]:
    return [pod for pod in pods(render) if pod.serves]


def probes_have_budgets(render: Render) -> Iterator[str]:
    for pod in serving(render):
        for key in PROBES:
            probe = pod.main.get(key)
            if probe is None:
                yield f"{pod.name}: no {key}"
                continue
            for number in ("periodSeconds", "timeoutSeconds", "failureThreshold"):
                if not isinstance(probe.get(number), int):
                    yield f"{pod.name}: {key} without {number}"
            if probe.get("timeoutSeconds", 1) > probe.get("periodSeconds", 10):
                yield f"{pod.name}: {key} may be asked again before it has answered"


def probes_ask_the_right_thing(render: Render) -> Iterator[str]:
    grpc = {"startupProbe": "startup", "livenessProbe": "liveness", "readinessProbe": "readiness"}
    http = {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    for pod in serving(render):
        ports = pod.ports()
        for key in PROBES:
            probe = pod.main.get(key, {})
            if pod.component in ("verifier", "drafter"):
                asked = probe.get("grpc", {})
                if asked != {"port": ports.get("health"), "service": grpc[key]}:
                    yield f"{pod.name}: {key} asks {asked}"
            elif pod.component == "gateway":
                asked = probe.get("httpGet", {})
                if (asked.get("path"), asked.get("port")) != (http[key], "http"):
                    yield f"{pod.name}: {key} asks {asked}"


def loading_is_given_time(render: Render) -> Iterator[str]:
    """A model takes minutes to load; nothing else does."""
    for pod in serving(render):
        probe = pod.main.get("startupProbe", {})
        budget = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        least = 300 if pod.component in ("verifier", "drafter") else 15
        if budget < least:
            yield f"{pod.name}: {budget} s to start in, less than {least}"


def graces_add_up(render: Render) -> Iterator[str]:
    for pod in serving(render):
        if pod.component not in ROLES:
            continue
        sleep = pod.main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
        grace = option(pod.main, "stop-grace")
        total = pod.spec.get("terminationGracePeriodSeconds")
        if not sleep or grace is None:
            yield f"{pod.name}: preStop {sleep}, --stop-grace {grace}"
        elif total != int(sleep) + float(grace) + MARGIN:
            yield f"{pod.name}: {total} s of grace for {sleep} + {grace} + {MARGIN}"


def resources_are_stated(render: Render) -> Iterator[str]:
    for where, _, container in containers(render):
        resources = container.get("resources", {})
        for need in ("cpu", "memory", "ephemeral-storage"):
            if need not in resources.get("requests", {}):
                yield f"{where}: no request of {need}"
        for need in ("memory", "ephemeral-storage"):
            if need not in resources.get("limits", {}):
                yield f"{where}: no limit of {need}"
        for name, count in resources.get("requests", {}).items():
            if "/" in name and resources.get("limits", {}).get(name) != count:
                yield f"{where}: {name} requested and limited by different counts"


def volumes_are_bounded(render: Render) -> Iterator[str]:
    """Each emptyDir has a size, those on the disk fit into what the pod may take of it, with its
    logs, and those in memory leave its containers some."""
    for pod in pods(render):
        sizes = {"": Decimal(0), "Memory": Decimal(0)}
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume:
                limit = volume["emptyDir"].get("sizeLimit")
                if limit is None:
                    yield f"{pod.name}: {volume['name']} may fill the node"
                sizes[volume["emptyDir"].get("medium", "")] += parse_quantity(limit or 0)
        # A kubelet takes the sum of the containers, or the most of an init container.
        limits = [c.get("resources", {}).get("limits", {}) for c in pod.every_container]
        disk = max(parse_quantity(each.get("ephemeral-storage", 0)) for each in limits)
        if disk <= sizes[""]:
            yield f"{pod.name}: volumes of {sizes['']} and logs in {disk}"
        if parse_quantity(pod.main["resources"]["limits"].get("memory", 0)) <= sizes["Memory"]:
            yield f"{pod.name}: volumes take its memory"


def requests_are_within_limits(render: Render) -> Iterator[str]:
    for where, _, container in containers(render):
        resources = container.get("resources", {})
        for name, limit in resources.get("limits", {}).items():
            request = resources.get("requests", {}).get(name, limit)
            if parse_quantity(request) > parse_quantity(limit):
                yield f"{where}: asks for {name} {request} where {limit} is the most"


def _of(render: Render, kind: str, pod: Pod) -> list[Object]:
    return [item for item in render.of(kind) if selected(item["spec"].get("selector"), pod.labels)]


def disruption_is_budgeted(render: Render) -> Iterator[str]:
    """One budget for each role of more than one pod, and none that lets no pod be moved."""
    for pod in serving(render):
        budgets = _of(render, "PodDisruptionBudget", pod)
        if len(budgets) > 1:
            yield f"{pod.name}: {len(budgets)} budgets; evictions are refused"
        if pod.replicas > 1 and not budgets:
            yield f"{pod.name}: {pod.replicas} replicas and no budget"
        for budget in budgets:
            spec = budget["spec"]
            least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
            if (least is None) == (most is None):
                yield f"{name_of(budget)}: minAvailable {least}, maxUnavailable {most}"
            if most in (0, "0%") or least == "100%":
                yield f"{name_of(budget)}: no node can ever be drained"
            if isinstance(least, int) and least >= max(pod.replicas, 1):
                yield f"{name_of(budget)}: {least} of {pod.replicas} pods must stay"


def replicas_are_spread(render: Render) -> Iterator[str]:
    """Over zones and hosts that they may go to, counting exactly the role's own pods."""
    for pod in serving(render):
        if pod.component not in ROLES:
            continue
        rules = pod.spec.get("topologySpreadConstraints", [])
        # Drafters go where verifiers are, which an even spread over zones would work against.
        wanted = {HOST} if pod.component == "drafter" else {ZONE, HOST}
        if not wanted <= {rule["topologyKey"] for rule in rules}:
            yield f"{pod.name}: spread over {[rule['topologyKey'] for rule in rules]}"
        for rule in rules:
            if not selected(rule.get("labelSelector"), pod.labels):
                yield f"{pod.name}: the spread over {rule['topologyKey']} counts other pods"
            if rule.get("nodeTaintsPolicy") != "Honor":
                yield f"{pod.name}: nodes with taints count, where none of its pods can be"
            for other in serving(render):
                foreign = other.component != pod.component
                if foreign and selected(rule.get("labelSelector"), other.labels):
                    yield f"{pod.name}: its spread counts {other.name}"


def drafters_seek_their_verifiers(render: Render) -> Iterator[str]:
    """Drafts are worth what they are early: in the verifiers' zone where there is room."""
    verifiers = [pod for pod in serving(render) if pod.component == "verifier"]
    for pod in serving(render):
        if pod.component != "drafter":
            continue
        affinity = pod.spec.get("affinity", {}).get("podAffinity", {})
        wishes = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
        terms = [wish["podAffinityTerm"] for wish in wishes]
        terms += affinity.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        near = [term for term in terms if term["topologyKey"] == ZONE]
        if not any(selected(term["labelSelector"], verifiers[0].labels) for term in near):
            yield f"{pod.name}: no wish to be in the verifiers' zone"


def rollouts_keep_capacity(render: Render) -> Iterator[str]:
    for item in render.of("Deployment"):
        strategy = item["spec"].get("strategy", {}).get("rollingUpdate", {})
        if strategy.get("maxUnavailable") != 0:
            yield f"{name_of(item)}: a rollout takes pods away before new ones are there"
    for item in render.of("StatefulSet"):
        if item["spec"].get("updateStrategy", {}).get("type") != "RollingUpdate":
            yield f"{name_of(item)}: a new version waits for someone to delete its pods"


def scalers_own_the_replicas(render: Render) -> Iterator[str]:
    """A scaler's target says no replicas, or each upgrade would undo what it has scaled."""
    scalers = {_target(item): item for item in render.of("HorizontalPodAutoscaler", "ScaledObject")}
    for (kind, name), scaler in scalers.items():
        target = render.find(kind, name)
        if target is None:
            yield f"{name_of(scaler)}: there is no {kind} {name}"
        elif "replicas" in target["spec"]:
            yield f"{name_of(scaler)}: {kind} {name} says replicas, too"


def _target(scaler: Mapping[str, Any]) -> tuple[str, str]:
    target = scaler["spec"]["scaleTargetRef"]
    return str(target.get("kind", "Deployment")), str(target["name"])


POLICIES = (
    probes_have_budgets,
    probes_ask_the_right_thing,
    loading_is_given_time,
    graces_add_up,
    resources_are_stated,
    volumes_are_bounded,
    requests_are_within_limits,
    disruption_is_budgeted,
    replicas_are_spread,
    drafters_seek_their_verifiers,
    rollouts_keep_capacity,
    scalers_own_the_replicas,
)
