"""From the EndpointSlices of a Service to its endpoints. Pure functions of what the API says.

A Service has several slices: one of each address family at least, more where it has many pods, and
while the control plane moves an endpoint from one to the other it is in both, or in neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slipstream.wire.address import join

COMPONENT = "app.kubernetes.io/component"
_FAMILIES = {"IPv4": 0, "IPv6": 1, "FQDN": 2}
# An EndpointSlice as JSON has it.
Slice = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """One process that may be talked to.

    Attributes:
        address: host:port.
        draining: it is about to stop: no new work, what runs there may go on.
        zone, node, pod: where it is, as far as is known; else empty.
    """

    address: str
    draining: bool = False
    zone: str = ""
    node: str = ""
    pod: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What a Service's slices hold.

    Attributes:
        endpoints: those that can be reached, by address.
        wrong: why some slices were left out, which is a mistake in what was asked for; or empty.
    """

    endpoints: tuple[Endpoint, ...] = ()
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    """An endpoint of one slice. What of several slices is the same pod has one `identity`."""

    identity: str
    preference: tuple[int, str]
    endpoint: Endpoint
    serving: bool


def found_in(slices: Iterable[Slice], port: str, role: str = "") -> Found:
    """All endpoints, each pod once, in whatever order the slices come.

    Of a pod with several addresses IPv4 comes first, as that is what services listen on by default.
    A pod that any slice calls terminating does terminate, as none ever comes back from that.

    Args:
        port: number or name.
        role: `app.kubernetes.io/component` that slices must have, or none; empty: any.
    """
    seen: list[_Seen] = []
    wrong: set[str] = set()
    for each in slices:
        labels = each.get("metadata", {}).get("labels") or {}
        theirs = labels.get(COMPONENT) or role
        number = _port(each, port)
        if role and theirs != role:
            wrong.add(f"it is a Service of component {theirs}, and a {role} is wanted")
        elif number is not None:
            seen += _seen(each, number)
        elif each.get("endpoints"):
            wrong.add(f"its pods have no port {port}, but {_ports(each)}")
    merged = _Merged()
    for one in seen:
        merged.add(one)
    return Found(merged.endpoints(), "; ".join(sorted(wrong)))


def zone_of(slices: Iterable[Slice], pod: str) -> str:
    """The zone of a pod, which need not be ready; empty where none is told."""
    for each in slices:
        for endpoint in each.get("endpoints") or ():
            if _pod(endpoint) == pod and endpoint.get("zone"):
                return str(endpoint["zone"])
    return ""


def _port(each: Slice, wanted: str) -> int | None:
    """The number of the port that is asked for; None where the slice has none such."""
    ports = each.get("ports") or ()
    for port in ports:
        if wanted in (str(port.get("port")), port.get("name")) and port.get("port"):
            return int(port["port"])
    # A slice without ports speaks of all of them.
    return int(wanted) if not ports and wanted.isdecimal() else None


def _ports(each: Slice) -> str:
    ports = each.get("ports") or ()
    return ", ".join(f"{port.get('name') or 'unnamed'} ({port.get('port')})" for port in ports)


def _pod(endpoint: Mapping[str, Any]) -> str:
    target = endpoint.get("targetRef") or {}
    return str(target.get("name") or "") if target.get("kind", "Pod") == "Pod" else ""


def _seen(each: Slice, port: int) -> Iterable[_Seen]:
    family = _FAMILIES.get(each.get("addressType", "IPv4"), len(_FAMILIES))
    for endpoint in each.get("endpoints") or ():
        # Several addresses of one endpoint are interchangeable.
        host = next(iter(sorted(endpoint.get("addresses") or ())), None)
        if host is None:
            continue
        conditions = endpoint.get("conditions") or {}
        # What is not said holds, but for terminating. `ready` is forced by
        # publishNotReadyAddresses; `serving` is what the pod's probe says.
        serving = conditions.get("serving")
        if serving is None:
            serving = conditions.get("ready") is not False
        pod = _pod(endpoint)
        target = endpoint.get("targetRef") or {}
        known = Endpoint(
            join(host, port),
            bool(conditions.get("terminating")),
            endpoint.get("zone") or "",
            endpoint.get("nodeName") or "",
            pod,
        )
        identity = f"{target.get('uid') or ''}/{pod}" if pod else known.address
        yield _Seen(identity, (family, known.address), known, bool(serving))


@dataclass(slots=True)
class _Merged:
    """By pod, then by address."""

    pods: dict[str, list[_Seen]] = field(default_factory=dict)

    def add(self, one: _Seen) -> None:
        self.pods.setdefault(one.identity, []).append(one)

    def endpoints(self) -> tuple[Endpoint, ...]:
        by_address: dict[str, Endpoint] = {}
        for pod in sorted(self.pods):
            one = _one(self.pods[pod])
            if one is None:
                continue
            other = by_address.setdefault(one.address, one)
            # An address has a new pod only when the old one is gone.
            if other.draining and not one.draining:
                by_address[one.address] = one
        return tuple(sorted(by_address.values()))


def _one(seen: list[_Seen]) -> Endpoint | None:
    """What the slices say of one pod, together; None where it cannot be reached."""
    serving = [one for one in seen if one.serving]
    if not serving:
        return None
    best = min(serving, key=lambda one: (one.preference, one.endpoint)).endpoint
    draining = any(one.endpoint.draining for one in seen)
    zone = next(iter(sorted({one.endpoint.zone for one in seen} - {""})), "")
    node = next(iter(sorted({one.endpoint.node for one in seen} - {""})), "")
    return Endpoint(best.address, draining, zone, node, best.pod)
