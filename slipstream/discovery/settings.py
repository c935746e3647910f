"""What the environment says of this pod and of the way to the API server."""

from __future__ import annotations

import os
import socket
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def pod_name() -> str:
    """$POD_NAME, else the host's name, which is the pod's unless it was given another."""
    return os.environ.get("POD_NAME") or socket.gethostname()


def kubeconfig() -> Path | None:
    """$KUBECONFIG, else, outside of a cluster, ~/.kube/config; None: the pod's service account.

    A service account is there in most pods, a kubeconfig in none that was not given one on purpose:
    so the latter comes first.
    """
    named = os.environ.get("KUBECONFIG", "").partition(os.pathsep)[0]
    if named:
        return Path(named)
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").is_file()
    return None if in_cluster else Path.home() / ".kube" / "config"


def default_namespace() -> str:
    """$POD_NAMESPACE, else the service account's, else that of the kubeconfig's context, else
    `default`."""
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    path = kubeconfig()
    try:
        if path is None:
            return (SERVICE_ACCOUNT / "namespace").read_text().strip() or "default"
        return _of_context(path) or "default"
    except (OSError, ValueError):
        return "default"


def _of_context(path: Path) -> str:
    """The namespace of the current context; empty where it names none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no kubeconfig.
    """
    import yaml

    try:
        read = yaml.safe_load(path.read_text())
        contexts = {each["name"]: each["context"] for each in read.get("contexts") or ()}
        return str(contexts.get(read.get("current-context"), {}).get("namespace") or "")
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as wrong:
        raise ValueError(f"{path} is no kubeconfig: {wrong}") from wrong
