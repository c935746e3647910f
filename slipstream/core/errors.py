"""Every error that Slipstream raises on purpose.

SlipstreamError
├── InvalidRequest            the client's input is wrong             INVALID_ARGUMENT     400
│   ├── InvalidParameter      a field has a value it cannot have      INVALID_ARGUMENT     400
│   ├── ContextTooLong        prompt or max_tokens beyond the window  INVALID_ARGUMENT     400
│   └── BodyTooLarge          the request body is over the limit      RESOURCE_EXHAUSTED   413
├── NotAuthenticated          no key, or an unknown one               UNAUTHENTICATED      401
├── ModelNotFound             the model asked for is not served       NOT_FOUND            404
├── SessionNotFound           no such session, or not any more        NOT_FOUND            404
├── GenerationNotFound        nothing to resume or fetch by that name NOT_FOUND            404
├── SessionConflict           another writer, or another turn, is on  ABORTED              409
├── IdempotencyConflict       the key belongs to another request      ALREADY_EXISTS       422
├── KvNotFound                nobody here has that prefix's KV        NOT_FOUND            404
│   └── KvExpired             a lease is gone, by time or for room    NOT_FOUND            404
│       └── KvHolderRestarted with the process that gave it           NOT_FOUND            404
├── ClusterForbidden          the Kubernetes API wants a right for it  PERMISSION_DENIED    403
├── ClusterNotFound           the Kubernetes API has no such object   NOT_FOUND            404
├── Overloaded                no room now; worth another try          RESOURCE_EXHAUSTED   429
├── QuotaReached              the API key has all that it may have    RESOURCE_EXHAUSTED   429
│   ├── TooManySessions       until one is deleted, or expires        RESOURCE_EXHAUSTED   429
│   └── TooManyGenerations    kept ones; the same                     RESOURCE_EXHAUSTED   429
├── Unavailable               a part of the system cannot be reached  UNAVAILABLE          503
│   ├── Draining              it is about to stop; others serve       UNAVAILABLE          503
│   ├── ClusterUnavailable    the Kubernetes API does not tell        UNAVAILABLE          503
│   ├── StoreUnavailable      the session store cannot be reached     UNAVAILABLE          503
│   └── Corrupted             a message is not what was sent          UNAVAILABLE          503
├── DeadlineExceeded          a wait reached its deadline             DEADLINE_EXCEEDED    504
│   └── StreamUnread          a client left its answer unread         DEADLINE_EXCEEDED    504
├── Cancelled                 the client went away                    CANCELLED            499
├── ModelMismatch             two parts do not hold the same model    FAILED_PRECONDITION  409
├── ConfigurationError        a setting, file or port is unusable     FAILED_PRECONDITION  500
│   └── CheckpointError       a model is missing, truncated, unknown  FAILED_PRECONDITION  500
└── InternalError             our own fault                           INTERNAL             500
"""

from __future__ import annotations

from typing import ClassVar


class SlipstreamError(Exception):
    """Base of the tree. Carries how it is told at gRPC and at HTTP.

    As a string, which is how logs have it, it says all; clients are told `message` alone.

    Attributes:
        message: what was wrong, and what would be right.
        inner: more, for operators only: addresses, paths, and what other systems said.
        grpc_status: name of the `grpc.StatusCode`.
        http_status: status code of the HTTP response.
        type: OpenAI's `error.type`.
        code: OpenAI's `error.code`, a stable machine-readable word.
        param: the request field at fault, where there is one.
        retry_after: seconds after which another try is worth it, where that is known.
    """

    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        inner: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.inner = inner
        self.param = param
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} ({self.inner})" if self.inner else self.message


class InvalidRequest(SlipstreamError):
    grpc_status = "INVALID_ARGUMENT"
    http_status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidParameter(InvalidRequest):
    code = "invalid_parameter"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class BodyTooLarge(InvalidRequest):
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 413
    code = "request_too_large"


class NotAuthenticated(SlipstreamError):
    grpc_status = "UNAUTHENTICATED"
    http_status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class ModelNotFound(SlipstreamError):
    grpc_status = "NOT_FOUND"
    http_status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class SessionNotFound(SlipstreamError):
    grpc_status = "NOT_FOUND"
    http_status = 404
    type = "invalid_request_error"
    code = "session_not_found"


class GenerationNotFound(SlipstreamError):
    grpc_status = "NOT_FOUND"
    http_status = 404
    type = "invalid_request_error"
    code = "generation_not_found"


class SessionConflict(SlipstreamError):
    grpc_status = "ABORTED"
    http_status = 409
    type = "invalid_request_error"
    code = "session_conflict"


class IdempotencyConflict(SlipstreamError):
    grpc_status = "ALREADY_EXISTS"
    http_status = 422
    type = "invalid_request_error"
    code = "idempotency_conflict"


class KvNotFound(SlipstreamError):
    """KV is a cache: whoever asked computes it instead."""

    grpc_status = "NOT_FOUND"
    http_status = 404
    type = "invalid_request_error"
    code = "kv_not_found"


class KvExpired(KvNotFound):
    code = "kv_expired"


class KvHolderRestarted(KvExpired):
    code = "kv_holder_restarted"


class ClusterForbidden(SlipstreamError):
    grpc_status = "PERMISSION_DENIED"
    http_status = 403
    type = "invalid_request_error"
    code = "cluster_forbidden"


class ClusterNotFound(SlipstreamError):
    grpc_status = "NOT_FOUND"
    http_status = 404
    type = "invalid_request_error"
    code = "cluster_object_not_found"


class Overloaded(SlipstreamError):
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 429
    type = "overloaded_error"
    code = "overloaded"


class QuotaReached(SlipstreamError):
    grpc_status = "RESOURCE_EXHAUSTED"
    http_status = 429
    type = "insufficient_quota"
    code = "quota_reached"


class TooManySessions(QuotaReached):
    code = "too_many_sessions"


class TooManyGenerations(QuotaReached):
    code = "too_many_generations"


class Unavailable(SlipstreamError):
    grpc_status = "UNAVAILABLE"
    http_status = 503
    type = "server_error"
    code = "unavailable"


class Draining(Unavailable):
    code = "draining"


class ClusterUnavailable(Unavailable):
    """What discovery watches is not told. Never leaves it but as text.

    Args:
        status: of HTTP; 0: there was no answer.
        short: in a few words.
    """

    code = "cluster_unavailable"

    def __init__(self, message: str, *, status: int = 0, short: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.short = short or message


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class Corrupted(Unavailable):
    code = "corrupted"


class DeadlineExceeded(SlipstreamError):
    grpc_status = "DEADLINE_EXCEEDED"
    http_status = 504
    type = "server_error"
    code = "deadline_exceeded"


class StreamUnread(DeadlineExceeded):
    code = "stream_unread"


class Cancelled(SlipstreamError):
    grpc_status = "CANCELLED"
    http_status = 499
    type = "invalid_request_error"
    code = "cancelled"


class ModelMismatch(SlipstreamError):
    grpc_status = "FAILED_PRECONDITION"
    http_status = 409
    type = "server_error"
    code = "model_mismatch"


class ConfigurationError(SlipstreamError):
    grpc_status = "FAILED_PRECONDITION"
    http_status = 500
    code = "configuration_error"


class CheckpointError(ConfigurationError):
    code = "checkpoint_error"


class InternalError(SlipstreamError):
    pass


def _leaves(root: type[SlipstreamError]) -> list[type[SlipstreamError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _leaves(child))]


def from_grpc(status: str, message: str, code: str = "") -> SlipstreamError:
    """The error that a peer raised, from its status name, message and (best) its code word."""
    for kind in _leaves(SlipstreamError)[1:]:
        if code and kind.code == code:
            return kind(message)
    for kind in _leaves(SlipstreamError)[1:]:
        if kind.grpc_status == status and not kind.__name__.startswith("Body"):
            return kind(message)
    return InternalError(f"{status}: {message}")
