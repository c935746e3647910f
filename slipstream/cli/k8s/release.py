"""A release as the API server knows it: found by its labels, read once."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from slipstream.cli.k8s.api import Cluster, Object
from slipstream.core.errors import ClusterForbidden, ConfigurationError

PART_OF = "app.kubernetes.io/part-of=slipstream"
NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
ROLES = ("gateway", "verifier", "drafter", "redis")
# Whose containers are ours, so that they are asked.
SERVICES = ("gateway", "verifier", "drafter")
_WORKLOADS = ("deployments", "statefulsets")
_KINDS = (
    *_WORKLOADS, "jobs", "pods", "services", "endpointslices", "networkpolicies",
    "horizontalpodautoscalers",
)  # fmt: skip
_PARALLEL = 8


@dataclass(slots=True)
class Release:
    """Objects in the shape of the API's JSON, by plural of their kind.

    Attributes:
        denied: why a kind could not be listed.
    """

    namespace: str
    name: str
    objects: dict[str, list[Object]] = field(default_factory=lambda: defaultdict(list))
    denied: dict[str, str] = field(default_factory=dict)

    def of(self, kind: str, role: str = "") -> list[Object]:
        """Objects of a kind, of one role where one is given."""
        found = self.objects[kind]
        return [one for one in found if not role or role_of(one) == role]

    def workloads(self, role: str = "") -> list[Object]:
        return [one for kind in _WORKLOADS for one in self.of(kind, role)]

    def wanted(self, role: str) -> int:
        """How many pods there should be."""
        return sum(one["spec"].get("replicas", 1) for one in self.workloads(role))

    def service_pods(self) -> Iterator[Object]:
        """Pods of our services, jobs' not among them."""
        for role in SERVICES:
            yield from self.of("pods", role)


def role_of(one: Object) -> str:
    return str((one["metadata"].get("labels") or {}).get(COMPONENT, ""))


def name_of(one: Object) -> str:
    return str(one["metadata"]["name"])


def condition(one: Object, kind: str) -> Object:
    """A condition of an object's status; empty where it has none."""
    found = (one.get("status") or {}).get("conditions") or ()
    return next((each for each in found if each.get("type") == kind), {})


def is_ready(pod: Object) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def moment(stamp: str) -> datetime:
    """A time as the API writes it."""
    return datetime.fromisoformat(stamp).astimezone(UTC)


def main_container(pod_spec: Object) -> Object:
    return dict(pod_spec["containers"][0])


def option(pod_spec: Object, name: str) -> str:
    """The value of `--name=value` of the main container; empty where it is not given."""
    for arg in main_container(pod_spec).get("args") or ():
        found, _, value = str(arg).partition("=")
        if found == f"--{name}":
            return value
    return ""


def port_of(pod_spec: Object, name: str) -> int:
    """The number of a named port of the main container; 0 where there is none."""
    ports = main_container(pod_spec).get("ports") or ()
    return next((int(p["containerPort"]) for p in ports if p.get("name") == name), 0)


def gpus(pod_spec: Object) -> dict[str, str]:
    """Accelerators that the main container asks for: nvidia.com/gpu, nvidia.com/mig-1g.10gb..."""
    limits = (main_container(pod_spec).get("resources") or {}).get("limits") or {}
    kinds = re.compile(r"(nvidia|amd|gpu\.intel)\.com/.*")
    return {key: str(count) for key, count in limits.items() if kinds.fullmatch(key)}


def find(cluster: Cluster, namespace: str | None, release: str | None) -> Release:
    """The release that is meant, with all its objects.

    Raises:
        ConfigurationError: there is none, or more than one that fits.
        ClusterForbidden, Unavailable, NotAuthenticated: the API server does not tell.
    """
    there = _names(cluster, namespace or cluster.namespace)
    if not there and namespace is None:
        there = _anywhere(cluster)
    fitting = sorted(one for one in there if release in (None, one[1]))
    if not fitting:
        named = f" named {release}" if release else ""
        where = f"namespace {namespace or cluster.namespace}"
        others = f"; there is {_listed(sorted(there))}" if there else ""
        raise ConfigurationError(
            f"no release{named} of Slipstream in {where}{others}: give --namespace and --release,"
            " as `helm list --all-namespaces` tells them"
        )
    if len(fitting) > 1:
        raise ConfigurationError(
            f"there is more than one release, {_listed(fitting)}: give --namespace and --release"
        )
    return _read(cluster, Release(*fitting[0]))


def _listed(names: list[tuple[str, str]]) -> str:
    return ", ".join(f"{name} in {namespace}" for namespace, name in names)


def _names(cluster: Cluster, namespace: str) -> set[tuple[str, str]]:
    """Namespace and name of the releases that have a workload there."""
    return {
        (one["metadata"]["namespace"], one["metadata"]["labels"][INSTANCE])
        for kind in _WORKLOADS
        for one in cluster.all(kind, namespace, PART_OF)
        if INSTANCE in one["metadata"]["labels"]
    }


def _anywhere(cluster: Cluster) -> set[tuple[str, str]]:
    try:
        return _names(cluster, "")
    except ClusterForbidden:
        return set()


def _read(cluster: Cluster, release: Release) -> Release:
    selector = f"{INSTANCE}={release.name}"

    def read(kind: str) -> None:
        try:
            release.objects[kind] = cluster.all(kind, release.namespace, selector)
        except ClusterForbidden as failure:
            release.denied[kind] = failure.message

    # Made now: threads must not make keys of their own.
    release.objects.update({kind: [] for kind in _KINDS})
    with ThreadPoolExecutor(_PARALLEL) as threads:
        list(threads.map(read, _KINDS))
    # Another chart's objects may carry the same release name.
    names = {one["metadata"]["labels"].get(NAME) for one in release.workloads()}
    ours = {
        one["metadata"]["labels"].get(NAME)
        for one in release.workloads()
        if one["metadata"]["labels"].get(PART_OF.partition("=")[0]) == "slipstream"
    } or names
    for kind, found in release.objects.items():
        release.objects[kind] = [
            one for one in found if (one["metadata"].get("labels") or {}).get(NAME) in ours
        ]
    return release
