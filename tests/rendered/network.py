"""Addresses of a release's pods: a piece of the loopback network that no other test run uses."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.rendered.manifests import Failed, Manifests, Object, selects
from tests.rendered.pod import Pod
from tests.rendered.translation import Names

# Nobody listens there but we, to show that the network is taken.
_CLAIM_PORT = 19_999
_TRIES = 200


@dataclass
class Network:
    """127.x.y.0/24: an ordinal of the K-th StatefulSet has 127.x.y.K{ordinal}, so that a pattern of
    names is a pattern of addresses; pods without an ordinal come from 200 on."""

    prefix: str
    claim: socket.socket
    _sets: dict[str, int] = field(default_factory=dict)
    _others: int = 200

    @classmethod
    def take(cls) -> Network:
        """Raises OSError: none is free."""
        for _ in range(_TRIES):
            prefix = f"127.{random.randrange(16, 255)}.{random.randrange(1, 255)}"
            claim = socket.socket()
            with contextlib.suppress(OSError):
                claim.bind((f"{prefix}.254", _CLAIM_PORT))
                return cls(prefix, claim)
            claim.close()
        raise OSError("no free piece of the loopback network")

    def close(self) -> None:
        self.claim.close()

    def pattern(self, stateful_set: str) -> str:
        """Its address, with `{}` for the ordinal (0 to 9)."""
        place = self._sets.setdefault(stateful_set, len(self._sets) + 1)
        return f"{self.prefix}.{place}{{}}"

    def of_ordinal(self, stateful_set: str, ordinal: int) -> str:
        assert ordinal < 10, "a set has ten addresses"
        return self.pattern(stateful_set).format(ordinal)

    def other(self) -> str:
        """A new one each time."""
        self._others += 1
        assert self._others < 254, "too many pods"
        return f"{self.prefix}.{self._others}"


def target_port(service: str, port: Object, template: Object) -> int:
    """The container's port behind a Service's port.

    Raises:
        Failed: it names a port that no container has.
    """
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in template["spec"]["containers"]:
        for found in container.get("ports") or []:
            if found.get("name") == target:
                return int(found["containerPort"])
    raise Failed(service, "NoSuchPort", f'no container has a port "{target}"')


def names_of(manifests: Manifests, network: Network, pods: Iterable[Pod]) -> Names:
    """Names of the StatefulSets' pods, their patterns, and each Service by one pod behind it: the
    first that is ready, or else the first there is."""
    names = Names()
    for owner in manifests.of("StatefulSet"):
        name, service = owner["metadata"]["name"], owner["spec"]["serviceName"]
        pattern = network.pattern(name)
        names.add(f"{name}-{{}}.{service}", manifests.namespace, pattern)
        replicas = owner["spec"].get("replicas", 1)
        for ordinal in range(replicas):
            pod = f"{name}-{ordinal}.{service}"
            names.add(pod, manifests.namespace, pattern.format(ordinal))
        if replicas == 1:
            # It may be asked for before its pod is there.
            names.add(service, manifests.namespace, pattern.format(0))
    for service in manifests.of("Service"):
        selector = service["spec"].get("selector")
        behind = [pod for pod in pods if selects(selector, pod.labels) and not pod.terminating]
        for pod in sorted(behind, key=lambda pod: not pod.ready)[:1]:
            for port in service["spec"]["ports"]:
                name = service["metadata"]["name"]
                to = target_port(name, port, pod.body)
                names.add(name, manifests.namespace, pod.ip, port=port["port"], to=to)
    return names
