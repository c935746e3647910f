"""A session as a document of the store: its key, its bytes, its times, who writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from slipstream.core.errors import InternalError, InvalidParameter
from slipstream.store import Document
from slipstream.wire.proto import gateway_pb2, store_pb2

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# A deleted session's document goes on, empty, for so many seconds: its versions then go on, too,
# and a writer that has not heard of it cannot take a new session's for the old one's.
TOMBSTONE_SECONDS = 600.0
TOMBSTONE = b""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session may have, and how many there may be.

    Attributes:
        ttl: seconds for which it is kept when unused, unless it asks for others.
        max_ttl: the most it may ask for.
        max_bytes: of its record, before a turn's answer.
        most: of one owner at once; 0 for no bound.
        claim: seconds for which a turn keeps others out after its last sign of life. The clocks of
            two gateways may differ by up to half of it before one takes a living turn's session
            for free; the turn that loses it is then refused when it is to be stored.
    """

    ttl: float = 24 * 3600.0
    max_ttl: float = 30 * 24 * 3600.0
    max_bytes: int = 1024 * 1024
    most: int = 10_000
    claim: float = 10.0

    @property
    def renewal(self) -> float:
        """Seconds from one sign of life to the next."""
        return 0.3 * self.claim

    @property
    def skew(self) -> float:
        return 0.5 * self.claim

    def lifetime(self, wanted: float | None) -> float:
        """Raises InvalidParameter: it is not above 0 and at most `max_ttl`."""
        if wanted is None:
            return self.ttl
        # Written so that NaN is refused.
        if not 0 < wanted <= self.max_ttl:
            raise InvalidParameter(
                f"ttl must be a number of seconds in (0, {self.max_ttl:g}], got {wanted:g}",
                param="ttl",
            )
        return wanted


def checked_id(session_id: str, param: str) -> str:
    """The id unchanged. Raises InvalidParameter."""
    # Clients resolve . and .. in paths before they send them.
    if _ID.fullmatch(session_id) is None or session_id in {".", ".."}:
        raise InvalidParameter(
            f"{param} must be 1 to 128 of: letters, digits, '.', '_', ':', '-'; not . or ..",
            param=param,
        )
    return session_id


def key(owner: str, session_id: str) -> str:
    return f"session/{owner}/{session_id}"


def index(owner: str) -> str:
    return f"sessions/{owner}"


def read(document: Document | None) -> store_pb2.SessionRecord | None:
    """None where there is none, or it was deleted. Raises InternalError: it cannot be read."""
    if document is None or document.value == TOMBSTONE:
        return None
    try:
        return store_pb2.SessionRecord.FromString(document.value)
    except DecodeError as failure:
        raise InternalError("the session's record in the store cannot be read") from failure


def copy(record: store_pb2.SessionRecord) -> store_pb2.SessionRecord:
    made = store_pb2.SessionRecord()
    made.CopyFrom(record)
    return made


def claim_left(record: store_pb2.SessionRecord, now: float, limits: Limits) -> float:
    """Seconds for which its writer keeps others out; 0 where nobody does.

    A claim that ends later than any could was made by a clock that is wrong by more than what is
    tolerated, and holds nobody up: it could do so for as long as that clock is ahead.
    """
    left = record.writer_until_unix - now if record.writer else 0.0
    return left if 0 < left <= limits.claim + limits.skew else 0.0


def claim(record: store_pb2.SessionRecord, writer: str, now: float, limits: Limits) -> None:
    record.writer, record.writer_until_unix = writer, now + limits.claim


def request_of(writer: str) -> str:
    """The request of a writer: `REQUEST/NONCE`, since two may have the same client's name."""
    return writer.partition("/")[0]


def release(record: store_pb2.SessionRecord, now: float) -> None:
    """Nobody writes it. The time is kept: without a writer, it is that of the last change."""
    record.writer, record.writer_until_unix = "", now


def expires(record: store_pb2.SessionRecord, limits: Limits) -> float:
    """Seconds since the epoch, unless it is used before."""
    written = record.writer_until_unix - (limits.claim if record.writer else 0.0)
    return float(written + record.ttl_seconds)


def told(
    record: store_pb2.SessionRecord, limits: Limits, *, turns: bool = True
) -> gateway_pb2.Session:
    """What clients are told of it, with or without its turns."""
    return gateway_pb2.Session(
        id=record.id,
        created_unix=record.created_unix,
        expires_unix=int(expires(record, limits)),
        kind=record.kind,
        num_turns=len(record.turns),
        turns=record.turns if turns else (),
    )
