"""The error tree: complete at both of its faces, and the same after a trip over gRPC."""

from __future__ import annotations

import re
from http import HTTPStatus

import grpc
import pytest

from slipstream.core import errors
from slipstream.core.errors import InternalError, SlipstreamError, from_grpc


def _tree(root: type[SlipstreamError]) -> list[type[SlipstreamError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


KINDS = _tree(SlipstreamError)
OPENAI_TYPES = {
    "invalid_request_error",
    "authentication_error",
    "overloaded_error",
    "insufficient_quota",
    "server_error",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_both_faces(kind: type[SlipstreamError]) -> None:
    """Each error maps to an existing gRPC status that is not OK, and to an HTTP error status."""
    assert grpc.StatusCode[kind.grpc_status] is not grpc.StatusCode.OK
    # 499 (client closed request) is a convention that the standard's list does not have.
    assert kind.http_status == 499 or HTTPStatus(kind.http_status) >= 400
    assert kind.type in OPENAI_TYPES
    assert re.fullmatch("[a-z_]+", kind.code)


@pytest.mark.parametrize("kind", KINDS)
def test_faces_agree_on_whose_fault_it_is(kind: type[SlipstreamError]) -> None:
    """A client's error is not a server's at the other face, by HTTP status and OpenAI type."""
    if kind.http_status >= 500:
        assert kind.type == "server_error"
    if kind.type in OPENAI_TYPES - {"server_error"}:
        assert 400 <= kind.http_status < 500


@pytest.mark.parametrize("kind", KINDS[1:])
def test_round_trip_over_grpc_keeps_the_kind(kind: type[SlipstreamError]) -> None:
    """Status name, message and code word bring back the very class that was raised."""
    back = from_grpc(kind.grpc_status, "why", kind.code)
    assert type(back) is kind
    assert back.message == str(back) == "why"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_without_a_code_the_status_is_kept(kind: type[SlipstreamError]) -> None:
    """A peer that sends no code word still gives an error of the same gRPC status."""
    assert from_grpc(kind.grpc_status, "why").grpc_status == kind.grpc_status


@pytest.mark.parametrize("status", [s.name for s in grpc.StatusCode if s.name != "OK"])
def test_any_status_becomes_an_error_of_the_tree(status: str) -> None:
    """Statuses of the transport that no error of ours has become internal errors, told whole."""
    error = from_grpc(status, "why", "no_such_code")
    assert "why" in error.message
    if status not in {kind.grpc_status for kind in KINDS}:
        assert type(error) is InternalError
        assert status in error.message


def test_the_drawing_in_the_module_is_the_tree() -> None:
    """The tree drawn at the top of the module names each class with its true statuses."""
    assert errors.__doc__ is not None
    drawn = re.findall(r"─ (\w+) .*? ([A-Z_]+) +(\d{3})$", errors.__doc__, re.MULTILINE)
    assert sorted(drawn) == sorted(
        (kind.__name__, kind.grpc_status, str(kind.http_status)) for kind in KINDS[1:]
    )
