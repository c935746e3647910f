"""The Kubernetes API as these commands use it: plain objects in JSON's shape, each call bounded."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from slipstream.core.errors import (
    ClusterForbidden,
    ClusterNotFound,
    ConfigurationError,
    InvalidRequest,
    NotAuthenticated,
    SlipstreamError,
    Unavailable,
)
from slipstream.discovery import settings

Object = dict[str, Any]
_SECONDS = 10.0
# Where objects of each kind are; those of one namespace are behind namespaces/NAME.
_PATHS = {
    "configmaps": "/api/v1",
    "events": "/api/v1",
    "persistentvolumeclaims": "/api/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "deployments": "/apis/apps/v1",
    "statefulsets": "/apis/apps/v1",
    "horizontalpodautoscalers": "/apis/autoscaling/v2",
    "jobs": "/apis/batch/v1",
    "endpointslices": "/apis/discovery.k8s.io/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


class Cluster:
    """One API server.

    Args:
        kubeconfig: file; None: $KUBECONFIG, else the service account of the pod that this runs in,
            else ~/.kube/config.
        context: of the kubeconfig; None: its current one.

    Attributes:
        inside: whether this runs in a pod of the cluster.
        namespace: what a command is about that names none.
        account: in a pod, its service account; empty where that is not known.

    Raises:
        ConfigurationError: there is no usable configuration.
    """

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self.inside = kubeconfig is None and context is None and settings.kubeconfig() is None
        self.configuration = client.Configuration()
        # Ours is the last word on how often and how long something is tried.
        self.configuration.retries = urllib3.Retry(0)
        self.namespace, self.account = "default", ""
        try:
            if self.inside:
                config.load_incluster_config(client_configuration=self.configuration)
                self.namespace = (
                    settings.SERVICE_ACCOUNT / "namespace"
                ).read_text().strip() or self.namespace
                self.account = _account((settings.SERVICE_ACCOUNT / "token").read_text())
            else:
                self._load(kubeconfig, context)
        except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError) as failure:
            where = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
            raise ConfigurationError(
                f"no way to a cluster in {where}: {str(failure).rstrip('.')}. Give --kubeconfig"
                " and --context, or run this in a pod with a service account"
            ) from failure
        self._client = client.ApiClient(self.configuration)

    def _load(self, kubeconfig: Path | None, context: str | None) -> None:
        if kubeconfig and not kubeconfig.is_file():
            raise FileNotFoundError("there is no such file")
        # What $KUBECONFIG says now: the library keeps what it said when it was imported.
        file = str(kubeconfig) if kubeconfig else os.environ.get("KUBECONFIG")
        config.load_kube_config(
            file, context, client_configuration=self.configuration, persist_config=False
        )
        contexts, current = config.list_kube_config_contexts(file)
        chosen = next((c for c in contexts if c["name"] == context), current)
        self.namespace = chosen["context"].get("namespace") or self.namespace

    def close(self) -> None:
        self._client.close()

    def client(self) -> client.ApiClient:
        """A client of its own, for what cannot share one."""
        return client.ApiClient(self.configuration)

    def all(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        """Objects of a kind, by its plural; of all namespaces where none is given.

        Raises:
            ClusterForbidden, Unavailable, NotAuthenticated.
        """
        query = [("labelSelector", selector)] if selector else []
        answer = self._ask("GET", _path(kind, namespace), f"list {kind}", query)
        return list(answer.get("items") or ())

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """One object. Raises ClusterNotFound, and what `all` raises."""
        return self._ask("GET", f"{_path(kind, namespace)}/{name}", f"get {kind} {name}")

    def last_words(self, namespace: str, pod: str, container: str, *, previous: bool) -> str:
        """The last lines of a container's log; empty where they cannot be had."""
        query = [
            ("container", container),
            ("tailLines", "5"),
            ("previous", str(previous).lower()),
        ]
        path = f"{_path('pods', namespace)}/{pod}/log"
        try:
            return self._send("GET", path, "get pods/log", query).decode(errors="replace").strip()
        except SlipstreamError:
            return ""

    def last_warning(self, namespace: str, pod: str) -> str:
        """What the last event of type Warning says of a pod; empty where there is none to see."""
        query = [("fieldSelector", f"involvedObject.name={pod},type=Warning")]
        try:
            answer = self._ask("GET", _path("events", namespace), "list events", query)
        except SlipstreamError:
            return ""
        found = sorted(answer.get("items") or (), key=lambda one: one.get("lastTimestamp") or "")
        return str(found[-1].get("message") or "") if found else ""

    def may(
        self, attributes: Mapping[str, str], user: str = "", groups: tuple[str, ...] = ()
    ) -> bool:
        """Whether a user may do something; without a user, whether we may. Raises what `all`
        raises."""
        kind = "SubjectAccessReview" if user else "SelfSubjectAccessReview"
        spec: Object = {"resourceAttributes": dict(attributes)}
        if user:
            spec |= {"user": user, "groups": list(groups)}
        path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = self._ask("POST", path, f"create {kind.lower()}s", body=review)
        return bool((answer.get("status") or {}).get("allowed"))

    def apply(self, kind: str, namespace: str, body: Object, manager: str) -> Object:
        """Server-side apply: creates the object or takes over its fields.

        Args:
            manager: owns these fields; what it owned before and are not among them is removed.

        Raises:
            InvalidRequest: the API server does not take it; and what `all` raises.
        """
        name = body["metadata"]["name"]
        return self._ask(
            "PATCH",
            f"{_path(kind, namespace)}/{name}",
            f"patch {kind} {name}",
            [("fieldManager", manager[:128]), ("force", "true")],
            body,
            content="application/apply-patch+yaml",
        )

    def _ask(
        self,
        method: str,
        path: str,
        what: str,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> Object:
        try:
            answer = json.loads(self._send(method, path, what, query, body, content))
        except ValueError as failure:
            raise Unavailable(f"{what}: the API server's answer is not JSON") from failure
        if not isinstance(answer, dict):
            raise Unavailable(f"{what}: the API server's answer is no object")
        return answer

    def _send(
        self,
        method: str,
        path: str,
        what: str,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        content: str = "application/json",
    ) -> bytes:
        headers = {"Accept": "application/json, */*"}
        if body is not None:
            headers["Content-Type"] = content
        request = self._client.param_serialize(
            method, path, query_params=query or [], header_params=headers, body=body,
            auth_settings=["BearerToken"],
        )  # fmt: skip
        try:
            response = self._client.call_api(*request, _request_timeout=_SECONDS)
            data = response.read()
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as failure:
            reason = getattr(failure, "reason", None) or failure
            raise Unavailable(
                f"{what}: the API server at {self.configuration.host} cannot be reached: {reason}"
            ) from failure
        if response.status >= 400:
            raise _refusal(response.status, data, what)
        return bytes(data)


def _account(token: str) -> str:
    """Whose token it is: its subject is system:serviceaccount:NAMESPACE:NAME."""
    try:
        middle = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
        return str(claims["sub"]).rpartition(":")[2]
    except (IndexError, KeyError, ValueError, TypeError):
        return ""


def _path(kind: str, namespace: str) -> str:
    return (
        f"{_PATHS[kind]}/namespaces/{namespace}/{kind}" if namespace else f"{_PATHS[kind]}/{kind}"
    )


def _refusal(status: int, data: bytes, what: str) -> SlipstreamError:
    try:
        message = str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        message = f"status {status}"
    text = f"{what}: {message}"
    if status == 401:
        return NotAuthenticated(f"{text}: the API server does not know who asks; log in again")
    if status == 403:
        return ClusterForbidden(text)
    if status == 404:
        return ClusterNotFound(text)
    return InvalidRequest(text) if status < 429 else Unavailable(text)
