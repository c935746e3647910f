"""The pods that a render's workloads make: specs, labels, containers, and what selects them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chart.helm import Object, Render, name_of

COMPONENT = "app.kubernetes.io/component"
ROLES = ("gateway", "verifier", "drafter")
STATEFUL = ("verifier", "drafter", "redis")
# Kinds whose pods come one by one, end by themselves, and take no traffic.
JOBS = ("Job", "CronJob", "Pod")


@dataclass(frozen=True)
class Pod:
    """One pod of a workload, as its template makes it."""

    owner: Object
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def name(self) -> str:
        return name_of(self.owner)

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.metadata.get("labels", {}))

    @property
    def component(self) -> str:
        return self.labels.get(COMPONENT, "")

    @property
    def replicas(self) -> int:
        """Of a Deployment under a scaler: 1, as nothing is said there."""
        return int(self.owner["spec"].get("replicas", 1))

    @property
    def serves(self) -> bool:
        return self.owner["kind"] not in JOBS

    @property
    def containers(self) -> list[Object]:
        return list(self.spec["containers"])

    @property
    def every_container(self) -> list[Object]:
        """Init containers too."""
        return [*self.spec.get("initContainers", []), *self.containers]

    @property
    def main(self) -> Object:
        return self.containers[0]

    def ports(self) -> dict[str, int]:
        """Container ports by name."""
        return {
            port["name"]: port["containerPort"]
            for container in self.every_container
            for port in container.get("ports", [])
        }


def _template_of(item: Object) -> Object | None:
    kind = item["kind"]
    if kind == "Pod":
        return item
    if kind in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
        return dict(item["spec"]["template"])
    if kind == "CronJob":
        return dict(item["spec"]["jobTemplate"]["spec"]["template"])
    return None


def pods(render: Render) -> list[Pod]:
    found = []
    for item in render.objects:
        pod = _template_of(item)
        if pod is not None:
            found.append(Pod(item, pod.get("metadata", {}), pod["spec"]))
    return found


def pod_of(render: Render, component: str) -> Pod:
    """The serving pod of a role."""
    (found,) = (pod for pod in pods(render) if pod.component == component and pod.serves)
    return found


def containers(render: Render) -> Iterator[tuple[str, Pod, Object]]:
    for pod in pods(render):
        for container in pod.every_container:
            yield f"{pod.name}.{container['name']}", pod, container


def selected(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) matches; {} matches all, None
    nothing."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_holds(rule, labels) for rule in selector.get("matchExpressions") or [])


def _holds(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(rule["key"])
    match rule["operator"]:
        case "In":
            return value in rule["values"]
        case "NotIn":
            return value not in rule["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"no such operator: {rule}")


def arguments(container: Mapping[str, Any]) -> list[str]:
    return [str(part) for part in [*container.get("command", []), *container.get("args", [])]]


def option(container: Mapping[str, Any], name: str) -> str | None:
    """The value of `--name=value` in a container's arguments; None where it is not there."""
    for argument in container.get("args", []):
        key, equals, value = str(argument).partition("=")
        if key == f"--{name}":
            return value if equals else ""
    return None


def environment(container: Mapping[str, Any]) -> dict[str, Object]:
    return {entry["name"]: entry for entry in container.get("env", [])}
