from slipstream.v1 import gateway_pb2 as _gateway_pb2
from slipstream.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRecord(_message.Message):
    __slots__ = ("owner", "id", "created_unix", "ttl_seconds", "kind", "turns", "prefix", "kv_holder", "kv_incarnation", "writer", "writer_until_unix")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_FIELD_NUMBER: _ClassVar[int]
    TTL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    KV_HOLDER_FIELD_NUMBER: _ClassVar[int]
    KV_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    WRITER_UNTIL_UNIX_FIELD_NUMBER: _ClassVar[int]
    owner: str
    id: str
    created_unix: int
    ttl_seconds: float
    kind: str
    turns: _containers.RepeatedCompositeFieldContainer[_gateway_pb2.SessionTurn]
    prefix: _types_pb2.Prefix
    kv_holder: str
    kv_incarnation: str
    writer: str
    writer_until_unix: float
    def __init__(self, owner: _Optional[str] = ..., id: _Optional[str] = ..., created_unix: _Optional[int] = ..., ttl_seconds: _Optional[float] = ..., kind: _Optional[str] = ..., turns: _Optional[_Iterable[_Union[_gateway_pb2.SessionTurn, _Mapping]]] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., kv_holder: _Optional[str] = ..., kv_incarnation: _Optional[str] = ..., writer: _Optional[str] = ..., writer_until_unix: _Optional[float] = ...) -> None: ...

class GenerationRecord(_message.Message):
    __slots__ = ("request_id", "owner", "model_key", "digest", "created_unix", "operation", "prompts", "sampling", "stop", "default_max_tokens", "stop_strings", "n", "speculative", "logprobs", "priority", "cache_salt", "deadline_unix", "background", "stream", "include_usage", "legacy_logprobs", "session_id", "session_turn", "turn")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    MODEL_KEY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_USAGE_FIELD_NUMBER: _ClassVar[int]
    LEGACY_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_TURN_FIELD_NUMBER: _ClassVar[int]
    TURN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    owner: str
    model_key: str
    digest: bytes
    created_unix: int
    operation: str
    prompts: _containers.RepeatedCompositeFieldContainer[_gateway_pb2.TokenIds]
    sampling: _types_pb2.SamplingParams
    stop: _types_pb2.StopConditions
    default_max_tokens: int
    stop_strings: _containers.RepeatedScalarFieldContainer[str]
    n: int
    speculative: bool
    logprobs: int
    priority: int
    cache_salt: str
    deadline_unix: float
    background: bool
    stream: bool
    include_usage: bool
    legacy_logprobs: bool
    session_id: str
    session_turn: int
    turn: _gateway_pb2.SessionTurn
    def __init__(self, request_id: _Optional[str] = ..., owner: _Optional[str] = ..., model_key: _Optional[str] = ..., digest: _Optional[bytes] = ..., created_unix: _Optional[int] = ..., operation: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[_gateway_pb2.TokenIds, _Mapping]]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., stop: _Optional[_Union[_types_pb2.StopConditions, _Mapping]] = ..., default_max_tokens: _Optional[int] = ..., stop_strings: _Optional[_Iterable[str]] = ..., n: _Optional[int] = ..., speculative: _Optional[bool] = ..., logprobs: _Optional[int] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[str] = ..., deadline_unix: _Optional[float] = ..., background: _Optional[bool] = ..., stream: _Optional[bool] = ..., include_usage: _Optional[bool] = ..., legacy_logprobs: _Optional[bool] = ..., session_id: _Optional[str] = ..., session_turn: _Optional[int] = ..., turn: _Optional[_Union[_gateway_pb2.SessionTurn, _Mapping]] = ...) -> None: ...

class GenerationFailure(_message.Message):
    __slots__ = ("code", "message", "param")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARAM_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    param: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., param: _Optional[str] = ...) -> None: ...
