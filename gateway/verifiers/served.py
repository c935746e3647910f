"""What a verifier says of itself, and how its streams come to a bad end."""

from __future__ import annotations

from dataclasses import dataclass

from slipstream.core.errors import SlipstreamError
from slipstream.wire.proto import verifier_pb2


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a verifier serves, from GetModel.

    Attributes:
        key: verifiers of one key give the same tokens.
        incarnation: names one life of the process.
        kv_address: where its KvService is; empty where it lends nothing.
        zone: where it runs; empty: not said.
        draining: it takes nothing new, as it is about to stop.
    """

    model_id: str
    fingerprint: str
    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    key: str = ""
    dtype: str = ""
    exactness: str = ""
    incarnation: str = ""
    kv_address: str = ""
    zone: str = ""
    draining: bool = False


def served_model(reply: verifier_pb2.GetModelResponse) -> ServedModel:
    return ServedModel(
        reply.model_id,
        reply.fingerprint,
        reply.context_length,
        reply.vocab_size,
        frozenset(reply.eos_token_ids),
        f"{reply.fingerprint}/{reply.dtype}/{reply.precision}/{reply.exactness}",
        reply.dtype,
        reply.exactness,
        reply.incarnation,
        reply.kv_address,
        reply.zone,
        reply.draining,
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is waited for what. Seconds.

    Attributes:
        first_token: for a request's first token.
        idle: between two messages of a stream, signs of life included.
        lost_after: of silence, of all streams and heartbeats, after which a verifier is lost.
        failover: for a verifier that goes on with what another one began.
        failovers: times that a continuation is taken up again without a new token between; 0: what
            is lost is told to the client.
    """

    first_token: float = 600.0
    idle: float = 30.0
    lost_after: float = 5.0
    failover: float = 30.0
    failovers: int = 5


@dataclass(frozen=True, slots=True)
class VerifierState:
    """What `/ready` says of one verifier.

    Attributes:
        state: "serving", "draining", "lost", or "other model": it answers, but for another model
            than new requests get.
        detail: why it does not serve; empty where it does.
        drafter_connected: None where that is not known.
        exactness: "fast" or "strict"; empty where it never answered.
        round_trip_seconds: of the last heartbeats, the quickest of some; None where there was none.
    """

    address: str
    state: str
    detail: str
    zone: str
    drafter_connected: bool | None
    drafter_detail: str
    exactness: str = ""
    round_trip_seconds: float | None = None


class Lost(Exception):
    """A verifier's stream is of no more use, through no fault of the request.

    What it brought before is good. Never leaves `gateway.verifiers`.

    Args:
        reason: "connection", "heartbeat", "silent", "corrupted", "cancelled" or "error".
        error: what the client is told where nobody goes on.
        reached: False where the request cannot have reached the verifier.
        passing: False where the same verifier would fail again.
    """

    def __init__(
        self, reason: str, error: SlipstreamError, *, reached: bool = True, passing: bool = True
    ) -> None:
        super().__init__(str(error))
        self.reason = reason
        self.error = error
        self.reached = reached
        self.passing = passing
