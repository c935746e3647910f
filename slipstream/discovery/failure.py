"""Why the API server does not tell, in words that say what to do."""

from __future__ import annotations

from slipstream.core.errors import ClusterUnavailable
from slipstream.discovery.service import Service


def refused(status: int, message: str, verb: str, service: Service) -> ClusterUnavailable:
    """What an answer with a status other than 200 means.

    Args:
        message: of the API server.
        verb: list or watch.
    """
    if status == 403:
        return ClusterUnavailable(
            f"the API server forbids to {verb} the EndpointSlices of Service {service} ({message})."
            f" Bind a Role of namespace {service.namespace} to this pod's service account:"
            " apiGroups [discovery.k8s.io], resources [endpointslices], verbs [get, list, watch];"
            " the chart does with rbac.create=true",
            status=403,
            short="forbidden",
        )
    if status == 401:
        return ClusterUnavailable(
            f"the API server knows no such user ({message}): the token of the service account, or"
            " of the kubeconfig, is missing, expired, or another cluster's",
            status=401,
            short="unauthorized",
        )
    if status == 410:
        return ClusterUnavailable(
            f"the API server has forgotten where we were ({message})", status=410, short="expired"
        )
    return ClusterUnavailable(
        f"the API server answered {status} ({message})", status=status, short=f"HTTP {status}"
    )
