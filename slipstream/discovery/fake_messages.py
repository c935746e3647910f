"""What a `FakeApiServer` is asked, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slipstream.discovery.fake_objects import Object

_REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound",
    405: "MethodNotAllowed", 409: "Conflict", 410: "Expired", 415: "UnsupportedMediaType",
    422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What somebody asked.

    Attributes:
        verb: as in a Role: get, list, watch, create, update, patch, delete; empty for paths that
            are no resources.
        resource: its plural; empty likewise.
        query: parameters of the URL.
    """

    method: str
    path: str
    verb: str
    resource: str
    namespace: str
    name: str
    query: dict[str, str]
    body: Any = None


class Refused(Exception):
    """An answer that is a Status with a failure."""

    def __init__(self, code: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code, self.reason = code, reason or _REASONS.get(code, "Unknown")


def failure(refused: Refused) -> Object:
    """The body that says so."""
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": str(refused), "reason": refused.reason, "code": refused.code,
    }  # fmt: skip


def gone(oldest: int, wanted: str) -> Refused:
    return Refused(410, f"too old resource version: {wanted} ({oldest})")
