"""Why the API server does not tell, in words that say what to do."""

from __future__ import annotations

from slipstream.core.errors import Unavailable
from slipstream.discovery.service import Service


class ApiFailure(Unavailable):
    """It did not tell. Never leaves `slipstream.discovery` but as text.

    Args:
        status: of HTTP; 0: there was no answer.
        short: in a few words.
    """

    def __init__(self, message: str, status: int = 0, short: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.short = short or message


def refused(status: int, message: str, verb: str, service: Service) -> ApiFailure:
    """What an answer with a status other than 200 means.

    Args:
        message: of the API server.
        verb: list or watch.
    """
    if status == 403:
        return ApiFailure(
            f"the API server forbids to {verb} the EndpointSlices of Service {service} ({message})."
            f" Bind a Role of namespace {service.namespace} to this pod's service account:"
            " apiGroups [discovery.k8s.io], resources [endpointslices], verbs [get, list, watch];"
            " the chart does with rbac.create=true",
            403,
            "forbidden",
        )
    if status == 401:
        return ApiFailure(
            f"the API server knows no such user ({message}): the token of the service account, or"
            " of the kubeconfig, is missing, expired, or another cluster's",
            401,
            "unauthorized",
        )
    if status == 410:
        return ApiFailure(f"the API server has forgotten where we were ({message})", 410, "expired")
    return ApiFailure(f"the API server answered {status} ({message})", status, f"HTTP {status}")
