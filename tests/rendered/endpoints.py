"""EndpointSlices as the endpoint controller writes them."""

from __future__ import annotations

from collections.abc import Iterable

from tests.rendered.manifests import Object, selects
from tests.rendered.network import target_port
from tests.rendered.pod import Pod


def endpoint_slice(service: Object, pods: Iterable[Pod]) -> Object:
    """The one slice of a Service, with the pods that it selects, ready or not."""
    name = service["metadata"]["name"]
    headless = service["spec"].get("clusterIP") == "None"
    behind = [pod for pod in pods if selects(service["spec"].get("selector"), pod.labels)]
    labels = {
        **(service["metadata"].get("labels") or {}),
        "kubernetes.io/service-name": name,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        **({"service.kubernetes.io/headless": ""} if headless else {}),
    }
    ports = [
        {
            "name": port.get("name", ""),
            "port": target_port(name, port, behind[0].body),
            "protocol": port.get("protocol", "TCP"),
        }
        for port in (service["spec"]["ports"] if behind else [])
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-local",
            "namespace": service["metadata"].get("namespace", ""),
            "labels": labels,
        },
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [_endpoint(service, pod) for pod in behind],
    }


def _endpoint(service: Object, pod: Pod) -> Object:
    unready_too = service["spec"].get("publishNotReadyAddresses", False)
    found: Object = {
        "addresses": [pod.ip],
        "conditions": {
            "ready": unready_too or (pod.ready and not pod.terminating),
            "serving": pod.ready,
            "terminating": pod.terminating,
        },
        "nodeName": pod.body["spec"]["nodeName"],
        "zone": pod.zone,
        "targetRef": {
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.body["metadata"]["namespace"],
        },
    }
    if pod.body["spec"].get("hostname"):
        found["hostname"] = pod.body["spec"]["hostname"]
    return found
