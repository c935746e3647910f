"""A healthy release as the API server holds it, and what its pods say: for tests to spoil."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any

from slipstream.cli.k8s.told import Told
from slipstream.discovery.fakes import endpoint, endpoint_slice
from slipstream.wire.proto import drafter_pb2, verifier_pb2

Object = dict[str, Any]
NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LONG_AGO, JUST_NOW = "2026-06-01T08:00:00Z", "2026-06-01T11:59:00Z"
PORTS = {
    "gateway": {"http": 8000, "grpc": 50050},
    "verifier": {"grpc": 50051, "health": 50061, "metrics": 9400},
    "drafter": {"grpc": 50052, "health": 50062, "metrics": 9401},
    "redis": {"redis": 6379},
}
COUNTS = {"gateway": 1, "verifier": 2, "drafter": 1, "redis": 1}


class Objects:
    """By kind and name.

    Args:
        release: its name; the namespace is set when they are put.
    """

    def __init__(self, release: str = "chat") -> None:
        self.release = release
        self.all: dict[tuple[str, str], Object] = {}
        for number, role in enumerate(PORTS):
            self._role(role, number)
        self.add("Secret", "chat-keys", api="v1", data={"redis-password": "eA==", "keys": "eA=="})
        self.add("ConfigMap", "chat-plan", api="v1", data={"plan.json": "{}"})
        claim = {"phase": "Bound"}
        self.add("PersistentVolumeClaim", "models-chat-slipstream-verifier-0", status=claim)
        self.add("NetworkPolicy", "chat-slipstream-verifier", "verifier", "networking.k8s.io/v1")

    def add(self, kind: str, name: str, role: str = "", api: str = "v1", **fields: Any) -> Object:
        labels = {
            "app.kubernetes.io/name": "slipstream",
            "app.kubernetes.io/instance": self.release,
            "app.kubernetes.io/part-of": "slipstream",
        }
        if role:
            labels["app.kubernetes.io/component"] = role
        made = {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, "labels": labels},
            **copy.deepcopy(fields),
        }
        self.all[kind, name] = made
        return made

    def _role(self, role: str, number: int) -> None:
        name = f"chat-slipstream-{role}"
        spec = _pod_spec(role, name)
        kind = "Deployment" if role == "gateway" else "StatefulSet"
        workload = {"replicas": COUNTS[role], "template": {"spec": spec}}
        self.add(kind, name, role, "apps/v1", spec=workload)
        endpoints = []
        for index in range(COUNTS[role]):
            address, pod = f"10.0.{number}.{index}", f"{name}-{index}"
            self.add("Pod", pod, role, spec=spec, status=_pod_status(address, role))
            endpoints.append(endpoint(address, zone="a", node="n", pod=pod))
        made = endpoint_slice(name, endpoints, component=role, ports=PORTS[role])
        labels = {**self.all["Pod", f"{name}-0"]["metadata"]["labels"]}
        made["metadata"]["labels"] |= labels
        del made["metadata"]["namespace"]
        self.all["EndpointSlice", made["metadata"]["name"]] = made

    def pod(self, role: str, index: int = 0) -> Object:
        return self.all["Pod", f"chat-slipstream-{role}-{index}"]

    def status(self, role: str, index: int = 0) -> Object:
        """Of the pod's container."""
        found: Object = self.pod(role, index)["status"]["containerStatuses"][0]
        return found

    def workload(self, role: str) -> Object:
        kind = "Deployment" if role == "gateway" else "StatefulSet"
        return self.all[kind, f"chat-slipstream-{role}"]

    def template(self, role: str) -> Object:
        """The pod's spec in its workload."""
        found: Object = self.workload(role)["spec"]["template"]["spec"]
        return found

    def slice(self, role: str) -> Object:
        return self.all["EndpointSlice", f"chat-slipstream-{role}-abcde"]

    def unready(
        self, role: str, since: str = LONG_AGO, why: str = "containers with unready"
    ) -> None:
        status = self.pod(role)["status"]
        status["startTime"] = since
        ready = {"type": "Ready", "status": "False", "message": why}
        status["conditions"] = [c for c in status["conditions"] if c["type"] != "Ready"] + [ready]


def _pod_spec(role: str, name: str) -> Object:
    args = {
        "gateway": ["--verifier=k8s:///chat-slipstream-verifier:50051"],
        "verifier": ["--drafter=k8s:///chat-slipstream-drafter:50052"],
        "drafter": ["--layer-plan=/etc/slipstream/plan/plan.json"],
        "redis": ["/etc/redis/redis.conf"],
    }[role]
    container: Object = {
        "name": role,
        "image": f"registry.example/slipstream-{role}:0.1.0"
        + ("" if role == "gateway" else "-cpu"),
        "args": args,
        "ports": [{"name": n, "containerPort": port} for n, port in PORTS[role].items()],
    }
    spec: Object = {"serviceAccountName": name, "containers": [container], "volumes": []}
    if role == "gateway":
        ref = {"name": "chat-keys", "key": "redis-password"}
        container["env"] = [{"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": ref}}]
        keys = {"secretName": "chat-keys", "items": [{"key": "keys", "path": "keys"}]}
        spec["volumes"] = [{"name": "keys", "secret": keys}]
    if role == "drafter":
        plan = {"name": "chat-plan", "items": [{"key": "plan.json", "path": "plan.json"}]}
        spec["volumes"] = [{"name": "plan", "configMap": plan}]
    if role == "verifier":
        claim = {"claimName": "models-chat-slipstream-verifier-0"}
        spec["volumes"] = [{"name": "models", "persistentVolumeClaim": claim}]
    return spec


def _pod_status(address: str, role: str) -> Object:
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": LONG_AGO}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    container = {
        "name": role,
        "image": "i",
        "imageID": f"sha256:{role}",
        "restartCount": 0,
        "state": {"running": {"startedAt": LONG_AGO}},
    }
    return {
        "phase": "Running",
        "podIP": address,
        "startTime": LONG_AGO,
        "conditions": conditions,
        "containerStatuses": [container],
    }


def model(**other: Any) -> verifier_pb2.GetModelResponse:
    told = {
        "model_id": "smol",
        "fingerprint": "f" * 32,
        "context_length": 4096,
        "dtype": "bfloat16",
        "device": "cpu",
        "exactness": "strict",
        "precision": "native",
        "zone": "a",
    }
    return verifier_pb2.GetModelResponse(**{**told, **other})


def status(**other: Any) -> verifier_pb2.GetStatusResponse:
    told = {
        "drafter_connected": True,
        "drafter_address": "10.0.2.0:50052",
        "steps": 4000,
        "draft_tokens": 5000,
        "accepted_tokens": 4000,
        "guess_tokens": 1000,
        "accepted_guess_tokens": 600,
        "plain_step_seconds": 0.020,
        "draft_step_seconds": 0.004,
        "draft_length": 4,
        "draft_worth": 1.9,
        "round_trip_seconds": 0.006,
        "round_trips": 900,
        "without_drafter_seconds": 3.0,
        "drafter_connections": 1,
    }
    return verifier_pb2.GetStatusResponse(**{**told, **other})


def drafter(**other: Any) -> drafter_pb2.GetDrafterResponse:
    told = {"model_fingerprint": "f" * 32, "layer_plan": "int8", "zone": "a", "device": "cpu"}
    return drafter_pb2.GetDrafterResponse(**{**told, **other})


def ready(*addresses: str, **other: Any) -> Object:
    verifiers = [
        {"address": f"{a}:50051", "state": "serving", "detail": "", "round_trip_seconds": 0.001}
        for a in addresses
    ]
    store = {"state": "ok", "detail": "", "answer_seconds": 0.001}
    return {"ready": True, "missing": [], "verifiers": verifiers, "store": store, **other}


def told() -> dict[str, Told]:
    """What all say, by short names: g, v0, v1, d."""
    seconds = 14400.0
    found = {"g": Told("gateway-0", "gateway", "10.0.0.0", running_seconds=seconds)}
    found["g"].ready = ready("10.0.1.0", "10.0.1.1")
    for index in (0, 1):
        one = Told(f"verifier-{index}", "verifier", f"10.0.1.{index}", running_seconds=seconds)
        one.model, one.status = model(), status()
        found[f"v{index}"] = one
    found["d"] = Told("drafter-0", "drafter", "10.0.2.0", running_seconds=seconds)
    found["d"].drafter = drafter()
    return found
