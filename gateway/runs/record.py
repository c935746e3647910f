"""A request as it is kept: all that its tokens, and the form of its answer, depend on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from gateway.continuation import Piece
from gateway.course import Course
from gateway.request import GenerationRequest
from gateway.terms import Terms
from slipstream.core.errors import InvalidParameter
from slipstream.wire.codec import sampling_from_proto, sampling_to_proto
from slipstream.wire.proto import gateway_pb2, store_pb2, types_pb2

Record = store_pb2.GenerationRecord
Pieces = AsyncGenerator[Piece, None]
# Put around the pieces of a run, which has not begun. The last argument tells what its request is
# called, which may change while it runs; None: it is as it says itself.
Recorded = Callable[[Pieces, GenerationRequest, Course, Callable[[], str] | None], Pieces]

KEY_HEADER = "Idempotency-Key"
_MOST_KEY_CHARACTERS = 255
# What changes when the answer comes and in how many pieces, but none of its tokens.
_ELSEWHERE = frozenset(
    {"stream", "stream_options", "user", "timeout", "priority", "cache_salt", "speculative"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants beside the answer itself.

    Attributes:
        owner: name of the API key; empty where none are asked for.
        digest: of all that changes the answer.
        stream: whether it comes as it is made.
        include_usage: in a chunk of its own, at the end of a stream.
        key: of the generation that this request joins, or begins; empty: its own.
        last_event: id of the last event that came before the connection was lost; empty: none.
        background: whether nobody waits for the answer.
        param: what the client calls `last_event`.
        session_id, session_turn, turn: the turn of a session that it becomes; empty: none.
        recorded: makes it that turn, when it is first run; None: nothing is to be done.
    """

    owner: str
    digest: bytes
    stream: bool
    include_usage: bool = False
    key: str = ""
    last_event: str = ""
    background: bool = False
    param: str = "Last-Event-ID"
    session_id: str = ""
    session_turn: int = 0
    turn: gateway_pb2.SessionTurn | None = None
    recorded: Recorded | None = None


def checked_key(key: str | None, param: str = KEY_HEADER) -> str:
    """Raises InvalidParameter unless it is 1 to 255 printable ASCII characters, or not there."""
    if key is None:
        return ""
    if not (0 < len(key) <= _MOST_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        raise InvalidParameter(
            f"{param} must have 1 to {_MOST_KEY_CHARACTERS} printable ASCII characters", param=param
        )
    return key


def digest_of_fields(operation: str, fields: Mapping[str, Any]) -> bytes:
    """Of a JSON body: the same for two that ask for the same answer; 32 bytes."""
    kept = {k: v for k, v in fields.items() if v is not None and k not in _ELSEWHERE}
    raw = orjson.dumps([operation, kept], option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(raw).digest()


def digest_of_message(request: gateway_pb2.GatewayServiceGenerateRequest) -> bytes:
    """The same of a gRPC request."""
    kept = gateway_pb2.GatewayServiceGenerateRequest()
    kept.CopyFrom(request)
    for name in (
        "request_id", "speculative", "priority", "deadline_seconds", "cache_salt",
        "idempotency_key", "resume_from",
    ):  # fmt: skip
        kept.ClearField(name)
    return hashlib.sha256(b"grpc" + kept.SerializeToString(deterministic=True)).digest()


def record_of(request: GenerationRequest, asked: Asked, model_key: str) -> Record:
    """The record of a request that begins now."""
    terms = request.terms
    record = Record(
        request_id=request.request_id,
        owner=asked.owner,
        model_key=model_key,
        digest=asked.digest,
        created_unix=int(time.time()),
        operation=request.operation,
        prompts=[gateway_pb2.TokenIds(ids=prompt) for prompt in request.prompts],
        sampling=sampling_to_proto(request.sampling),
        stop=types_pb2.StopConditions(
            max_tokens=request.max_tokens or 0,
            stop_token_ids=sorted(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
        ),
        default_max_tokens=request.default_max_tokens,
        stop_strings=request.stop_strings,
        n=request.n,
        speculative=request.speculative,
        logprobs=request.logprobs,
        priority=terms.priority,
        cache_salt=terms.cache_salt,
        background=asked.background,
        stream=asked.stream,
        include_usage=asked.include_usage,
        legacy_logprobs=request.operation == "text_completion",
        session_id=asked.session_id,
        session_turn=asked.session_turn,
        turn=asked.turn,
    )
    if terms.deadline is not None:
        record.deadline_unix = time.time() + terms.deadline - time.monotonic()
    return record


def request_of(record: Record) -> GenerationRequest:
    """The request that a record is of, as it would have been asked here and now."""
    deadline = None
    if record.HasField("deadline_unix"):
        deadline = time.monotonic() + record.deadline_unix - time.time()
    operation: Literal["chat", "text_completion"] = (
        "chat" if record.operation == "chat" else "text_completion"
    )
    stop = record.stop
    default = record.default_max_tokens if record.HasField("default_max_tokens") else None
    return GenerationRequest(
        request_id=record.request_id,
        operation=operation,
        prompts=tuple(tuple(prompt.ids) for prompt in record.prompts),
        sampling=sampling_from_proto(record.sampling),
        max_tokens=stop.max_tokens or None,
        default_max_tokens=default,
        stop_token_ids=frozenset(stop.stop_token_ids),
        ignore_eos=stop.ignore_eos,
        stop_strings=tuple(record.stop_strings),
        n=record.n,
        speculative=record.speculative if record.HasField("speculative") else None,
        logprobs=record.logprobs if record.HasField("logprobs") else None,
        terms=Terms(record.owner, record.priority, deadline, record.cache_salt),
    )


def choices_of(record: Record) -> int:
    """Continuations of all prompts together."""
    return len(record.prompts) * int(record.n)
