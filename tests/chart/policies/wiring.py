"""Whether every name in a render leads somewhere: labels, selectors, ports, volumes, keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.chart.helm import NAMESPACE, RELEASE, Object, Render, name_of
from tests.chart.pods import COMPONENT, Pod, arguments, containers, pods, selected

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABELS = {
    "app.kubernetes.io/name": "slipstream",
    "app.kubernetes.io/instance": RELEASE,
    "app.kubernetes.io/part-of": "slipstream",
    "app.kubernetes.io/managed-by": "Helm",
}
SELECTOR_LABELS = {"app.kubernetes.io/name", "app.kubernetes.io/instance", COMPONENT}


def names_are_valid_and_single(render: Render) -> Iterator[str]:
    seen = set()
    for item in render.objects:
        key = (item["apiVersion"], item["kind"], item["metadata"]["name"])
        if key in seen:
            yield f"{name_of(item)}: twice"
        seen.add(key)
        name = item["metadata"]["name"]
        if not NAME.fullmatch(name) or len(name) > 63:
            yield f"{name_of(item)}: no name of an object"
        if item["metadata"].get("namespace", NAMESPACE) != NAMESPACE:
            yield f"{name_of(item)}: in another namespace"


def labels_are_complete(render: Render) -> Iterator[str]:
    for item in render.objects:
        labels = item["metadata"].get("labels", {})
        for key, value in LABELS.items():
            if labels.get(key) != value:
                yield f"{name_of(item)}: label {key} is {labels.get(key)}"
        for key in ("app.kubernetes.io/version", "helm.sh/chart"):
            if not labels.get(key):
                yield f"{name_of(item)}: no label {key}"
    for pod in pods(render):
        for key in SELECTOR_LABELS:
            if key not in pod.labels:
                yield f"{pod.name}: its pods have no label {key}"
        if pod.component != pod.owner["metadata"]["labels"].get(COMPONENT):
            yield f"{pod.name}: labelled as another component than its pods"


def workloads_select_their_own_pods(render: Render) -> Iterator[str]:
    for pod in pods(render):
        if not pod.serves:
            continue
        selector = pod.owner["spec"]["selector"]
        if set(selector.get("matchLabels", {})) != SELECTOR_LABELS or len(selector) != 1:
            yield f"{pod.name}: selects by {selector}"
        taken = [other.name for other in pods(render) if selected(selector, other.labels)]
        if taken != [pod.name]:
            yield f"{pod.name}: selects {taken}"


def _picked(render: Render, labels: Mapping[str, str] | None) -> list[Pod]:
    wanted = None if labels is None else {"matchLabels": labels}
    return [pod for pod in pods(render) if selected(wanted, pod.labels)]


def services_reach_one_role(render: Render) -> Iterator[str]:
    for service in render.of("Service"):
        chosen = _picked(render, service["spec"].get("selector"))
        if len(chosen) != 1:
            yield f"{name_of(service)}: selects {[pod.name for pod in chosen]}"
            continue
        (pod,) = chosen
        if service["metadata"]["labels"].get(COMPONENT) != pod.component:
            yield f"{name_of(service)}: its slices would say another role than {pod.component}"
        for port in service["spec"]["ports"]:
            if pod.ports().get(port["name"]) is None:
                yield f"{name_of(service)}: {pod.name} has no port {port['name']}"
            if port.get("targetPort") != port["name"]:
                yield f"{name_of(service)}: {port['name']} leads to {port.get('targetPort')}"


def stateful_pods_have_a_headless_service(render: Render) -> Iterator[str]:
    for item in render.of("StatefulSet"):
        service = render.find("Service", item["spec"]["serviceName"])
        if service is None or service["spec"].get("clusterIP") != "None":
            yield f"{name_of(item)}: no headless Service {item['spec']['serviceName']}"
        elif not selected(
            {"matchLabels": service["spec"]["selector"]},
            item["spec"]["template"]["metadata"]["labels"],
        ):
            yield f"{name_of(item)}: its Service selects other pods"


def listeners_are_declared(render: Render) -> Iterator[str]:
    """Every `--x=ADDRESS:PORT` that a process binds is a port of its container."""
    binding = re.compile(r"--(?:http|grpc|listen|health|metrics)=.*:(\d+)")
    for where, _, container in containers(render):
        declared = {port["containerPort"] for port in container.get("ports", [])}
        bound = {int(m.group(1)) for a in arguments(container) if (m := binding.fullmatch(a))}
        if container.get("command", [])[:2] == ["python", "-m"] and bound != declared:
            yield f"{where}: binds {sorted(bound)}, declares {sorted(declared)}"


def ports_have_names_of_their_own(render: Render) -> Iterator[str]:
    for pod in pods(render):
        ports = [p for c in pod.every_container for p in c.get("ports", [])]
        for key in ("name", "containerPort"):
            values = [port.get(key) for port in ports]
            if len(set(values)) != len(values) or None in values:
                yield f"{pod.name}: ports' {key}s are {values}"


def probes_and_monitors_name_ports_that_exist(render: Render) -> Iterator[str]:
    for where, pod, container in containers(render):
        for key in ("startupProbe", "livenessProbe", "readinessProbe"):
            for kind in ("httpGet", "tcpSocket", "grpc"):
                port = container.get(key, {}).get(kind, {}).get("port")
                if port is not None and port not in _names_and_numbers(pod):
                    yield f"{where}: {key} asks port {port}"
    for monitor in render.of("PodMonitor"):
        chosen = [p for p in pods(render) if selected(monitor["spec"]["selector"], p.labels)]
        if not chosen:
            yield f"{name_of(monitor)}: selects no pod"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in chosen:
                if endpoint["port"] not in pod.ports():
                    yield f"{name_of(monitor)}: {pod.name} has no port {endpoint['port']}"
    for monitor in render.of("ServiceMonitor"):
        selector = monitor["spec"]["selector"]
        services = [
            item for item in render.of("Service") if selected(selector, item["metadata"]["labels"])
        ]
        if not services:
            yield f"{name_of(monitor)}: selects no Service"
        for endpoint in monitor["spec"]["endpoints"]:
            for service in services:
                if endpoint["port"] not in {port["name"] for port in service["spec"]["ports"]}:
                    yield f"{name_of(monitor)}: {name_of(service)} has no port {endpoint['port']}"


def _backends(item: Object) -> Iterator[tuple[str, Any]]:
    """(Service, port) of every backend of an Ingress or a route."""
    for rule in item["spec"]["rules"]:
        for path in rule.get("http", {}).get("paths", []):
            service = path["backend"]["service"]
            yield service["name"], service["port"].get("name") or service["port"]["number"]
        for backend in rule.get("backendRefs", []):
            yield backend["name"], backend["port"]


def routes_lead_to_services(render: Render) -> Iterator[str]:
    for item in render.of("Ingress", "HTTPRoute", "GRPCRoute"):
        for name, port in _backends(item):
            service = render.find("Service", name)
            ports = [] if service is None else service["spec"]["ports"]
            if port not in {value for each in ports for value in (each["name"], each["port"])}:
                yield f"{name_of(item)}: no Service {name} with a port {port}"


def _names_and_numbers(pod: Pod) -> set[str | int]:
    return {*pod.ports(), *pod.ports().values()}


def policies_and_budgets_select_pods(render: Render) -> Iterator[str]:
    """One component each, but for the policy that closes all; ports are those of its pods."""
    for item in render.of("NetworkPolicy", "PodDisruptionBudget"):
        spec = item["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        chosen = [pod for pod in pods(render) if selected(selector, pod.labels)]
        if not chosen:
            yield f"{name_of(item)}: selects no pod"
        # The one for all pods lets nothing through that is a role's own.
        shared = item["metadata"]["name"].endswith("-default") and not spec["ingress"]
        if len({pod.component for pod in chosen}) > 1 and not shared:
            yield f"{name_of(item)}: selects {[pod.name for pod in chosen]}"
        for rule in spec.get("ingress") or []:
            for port in rule.get("ports") or []:
                known = {each for pod in chosen for each in _names_and_numbers(pod)}
                if port.get("port") not in known:
                    yield f"{name_of(item)}: no pod of it has a port {port.get('port')}"


def affinities_name_pods_of_the_release(render: Render) -> Iterator[str]:
    """Whom a pod wants to be near, or far from, are pods of one role of this very release."""
    for pod in pods(render):
        for key in ("podAffinity", "podAntiAffinity"):
            rules = pod.spec.get("affinity", {}).get(key, {})
            terms = list(rules.get("requiredDuringSchedulingIgnoredDuringExecution", []))
            wishes = rules.get("preferredDuringSchedulingIgnoredDuringExecution", [])
            terms += [wish["podAffinityTerm"] for wish in wishes]
            for term in terms:
                named = set(term["labelSelector"].get("matchLabels", {}))
                chosen = _picked(render, term["labelSelector"].get("matchLabels"))
                if len(chosen) != 1 or named != SELECTOR_LABELS:
                    yield f"{pod.name}: {key} to {[other.name for other in chosen]} by {named}"


POLICIES = (
    names_are_valid_and_single,
    labels_are_complete,
    workloads_select_their_own_pods,
    services_reach_one_role,
    stateful_pods_have_a_headless_service,
    listeners_are_declared,
    ports_have_names_of_their_own,
    probes_and_monitors_name_ports_that_exist,
    routes_lead_to_services,
    affinities_name_pods_of_the_release,
    policies_and_budgets_select_pods,
)
