"""What the pods of a release say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from slipstream.wire.proto import drafter_pb2, verifier_pb2


@dataclass(slots=True)
class Told:
    """One pod's words; None for what it was not asked, or did not answer.

    Attributes:
        address: its IP.
        gpus: accelerators that it asks for.
        zone: of its endpoint; empty: not known.
        running_seconds: since its container started.
        failure: why it could not be asked; empty where it answered.
        shard: it holds a part of a drafter, behind the first.
        ready: the gateway's `/ready`.
    """

    pod: str
    role: str
    address: str = ""
    gpus: dict[str, str] = field(default_factory=dict)
    zone: str = ""
    running_seconds: float = 0.0
    failure: str = ""
    shard: bool = False
    model: verifier_pb2.GetModelResponse | None = None
    status: verifier_pb2.GetStatusResponse | None = None
    drafter: drafter_pb2.GetDrafterResponse | None = None
    ready: dict[str, Any] | None = None


def verifiers(told: list[Told]) -> list[Told]:
    """Those that answered."""
    return [one for one in told if one.model is not None and one.status is not None]


def drafters(told: list[Told]) -> list[Told]:
    """The same; a drafter in shards is its first one."""
    return [one for one in told if one.drafter is not None]


def gateways(told: list[Told]) -> list[Told]:
    return [one for one in told if one.ready is not None]
