"""Who may reach whom under a render's NetworkPolicies, computed as a network plugin would.

Endpoints are the render's pods and those around them: clients, strangers, the cluster's DNS, the
API server, hosts outside. An arrow (source, target, port) is allowed where the source's egress and
the target's ingress both allow it: with no policy of that direction on a pod everything is, else
what one of them names. Traffic of the kubelet is not subject to policies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chart.helm import NAMESPACE, Object, Render
from tests.chart.pods import Pod, pods, selected

Arrow = tuple[str, str, str]
# No one listens there: what reaches it was let through without a port.
UNUSED = 31337


@dataclass(frozen=True)
class Endpoint:
    """A pod of any namespace, or (namespace "") a host outside the cluster."""

    name: str
    address: str
    ports: Mapping[str, tuple[str, int]]
    """(protocol, number) by name."""
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    host: bool = False
    """On a node's own network, as the API server is: no policy selects it."""


def pod_endpoint(pod: Pod, namespace: str = NAMESPACE, name: str = "") -> Endpoint:
    named = {port: ("TCP", number) for port, number in pod.ports().items()}
    named["unused"] = ("TCP", UNUSED)
    return Endpoint(name or pod.component, "10.244.0.1", named, namespace, pod.labels)


def endpoints(render: Render) -> list[Endpoint]:
    """The render's pods, by their components' names."""
    return [pod_endpoint(pod) for pod in pods(render)]


def namespace_labels(namespace: str) -> dict[str, str]:
    return {"kubernetes.io/metadata.name": namespace}


@dataclass(frozen=True)
class Policies:
    """The NetworkPolicies of one namespace."""

    items: tuple[Object, ...]
    namespace: str = NAMESPACE

    def _on(self, pod: Endpoint, direction: str) -> Iterator[Object]:
        if pod.namespace != self.namespace or pod.host:
            return
        for policy in self.items:
            spec = policy["spec"]
            if direction in _types(spec) and selected(spec["podSelector"], pod.labels):
                yield spec

    def allow(self, source: Endpoint, target: Endpoint, port: str) -> bool:
        """Whether `source` may open a connection to `target`'s port of that name."""
        protocol, number = target.ports[port]
        where = (target, protocol, number)
        return self._direction(source, "Egress", target, where) and self._direction(
            target, "Ingress", source, where
        )

    def _direction(
        self,
        subject: Endpoint,
        direction: str,
        other: Endpoint,
        where: tuple[Endpoint, str, int],
    ) -> bool:
        specs = list(self._on(subject, direction))
        if not specs:
            return True
        side, key = ("to", "egress") if direction == "Egress" else ("from", "ingress")
        return any(
            _peers(rule.get(side), other, self.namespace) and _ports(rule.get("ports"), *where)
            for spec in specs
            for rule in spec.get(key) or []
        )


def _types(spec: Mapping[str, Any]) -> list[str]:
    """policyTypes, with Kubernetes' default."""
    default = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    return list(spec.get("policyTypes") or default)


def _peers(peers: list[Object] | None, other: Endpoint, own: str) -> bool:
    """No list or an empty one: anyone."""
    return not peers or any(_peer(peer, other, own) for peer in peers)


def _peer(peer: Mapping[str, Any], other: Endpoint, own: str) -> bool:
    block = peer.get("ipBlock")
    if block is not None:
        address = ipaddress.ip_address(other.address)
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(cidr) for cidr in block.get("except", [])
        )
    if not other.namespace or other.host:
        return False
    if "namespaceSelector" in peer:
        there = selected(peer["namespaceSelector"], namespace_labels(other.namespace))
    else:
        there = other.namespace == own
    return there and ("podSelector" not in peer or selected(peer["podSelector"], other.labels))


def _ports(ports: list[Object] | None, target: Endpoint, protocol: str, number: int) -> bool:
    """No list or an empty one: all. A name is that of the target's port."""
    return not ports or any(_port(port, target, protocol, number) for port in ports)


def _port(port: Mapping[str, Any], target: Endpoint, protocol: str, number: int) -> bool:
    if port.get("protocol", "TCP") != protocol:
        return False
    wanted = port.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return target.ports.get(wanted) == (protocol, number)
    return int(wanted) <= number <= int(port.get("endPort", wanted))


def policies(render: Render, namespace: str = NAMESPACE) -> Policies:
    return Policies(tuple(render.of("NetworkPolicy")), namespace)


def arrows(rules: Policies, inside: Iterable[Endpoint], outside: Iterable[Endpoint]) -> set[Arrow]:
    """All that is allowed from or to `inside`; a pod's other replicas count as targets."""
    inside, outside = list(inside), list(outside)
    pairs = [(a, b) for a in inside for b in [*inside, *outside]]
    pairs += [(a, b) for a in outside for b in inside]
    return {
        (source.name, target.name, port)
        for source, target in pairs
        for port in target.ports
        if rules.allow(source, target, port)
    }
