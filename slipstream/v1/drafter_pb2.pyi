from slipstream.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DraftRequest(_message.Message):
    __slots__ = ("commands", "traceparent")
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[DraftCommand]
    traceparent: str
    def __init__(self, commands: _Optional[_Iterable[_Union[DraftCommand, _Mapping]]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class DraftCommand(_message.Message):
    __slots__ = ("hello", "open", "commit", "close", "window", "pace")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    open: OpenSequence
    commit: Commit
    close: CloseSequence
    window: SetWindow
    pace: SetPace
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., open: _Optional[_Union[OpenSequence, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., close: _Optional[_Union[CloseSequence, _Mapping]] = ..., window: _Optional[_Union[SetWindow, _Mapping]] = ..., pace: _Optional[_Union[SetPace, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("model_fingerprint", "vocab_size", "incarnation", "kv_address", "host", "cores")
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    KV_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    model_fingerprint: str
    vocab_size: int
    incarnation: str
    kv_address: str
    host: str
    cores: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model_fingerprint: _Optional[str] = ..., vocab_size: _Optional[int] = ..., incarnation: _Optional[str] = ..., kv_address: _Optional[str] = ..., host: _Optional[str] = ..., cores: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenSequence(_message.Message):
    __slots__ = ("sequence_id", "token_ids", "num_prompt_tokens", "sampling", "window", "max_length", "cache_salt")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_prompt_tokens: int
    sampling: _types_pb2.SamplingParams
    window: int
    max_length: int
    cache_salt: str
    def __init__(self, sequence_id: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., window: _Optional[int] = ..., max_length: _Optional[int] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("sequence_id", "prefix", "token_ids")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    prefix: _types_pb2.Prefix
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_id: _Optional[int] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CloseSequence(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class SetWindow(_message.Message):
    __slots__ = ("sequence_id", "window")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    window: int
    def __init__(self, sequence_id: _Optional[int] = ..., window: _Optional[int] = ...) -> None: ...

class SetPace(_message.Message):
    __slots__ = ("cores", "burst")
    CORES_FIELD_NUMBER: _ClassVar[int]
    BURST_FIELD_NUMBER: _ClassVar[int]
    cores: _containers.RepeatedScalarFieldContainer[int]
    burst: bool
    def __init__(self, cores: _Optional[_Iterable[int]] = ..., burst: _Optional[bool] = ...) -> None: ...

class DraftResponse(_message.Message):
    __slots__ = ("hello", "proposals", "refused", "draft_step_seconds", "computed_seconds")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DRAFT_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    proposals: _containers.RepeatedCompositeFieldContainer[Proposal]
    refused: _containers.RepeatedCompositeFieldContainer[SequenceRefused]
    draft_step_seconds: float
    computed_seconds: float
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., proposals: _Optional[_Iterable[_Union[Proposal, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[SequenceRefused, _Mapping]]] = ..., draft_step_seconds: _Optional[float] = ..., computed_seconds: _Optional[float] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("sequence_id", "prefix", "token_ids", "parents", "paused", "committed_length")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LENGTH_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    prefix: _types_pb2.Prefix
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    parents: _containers.RepeatedScalarFieldContainer[int]
    paused: bool
    committed_length: int
    def __init__(self, sequence_id: _Optional[int] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., token_ids: _Optional[_Iterable[int]] = ..., parents: _Optional[_Iterable[int]] = ..., paused: _Optional[bool] = ..., committed_length: _Optional[int] = ...) -> None: ...

class SequenceRefused(_message.Message):
    __slots__ = ("sequence_id", "reason")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    reason: str
    def __init__(self, sequence_id: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class GetDrafterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetDrafterResponse(_message.Message):
    __slots__ = ("model_fingerprint", "layer_plan", "open_sequences", "steps", "drafted_tokens", "rolled_back_tokens", "step_seconds", "kv_blocks_used", "weight_bytes", "kv", "plan_trials", "plan_moves", "spare_seconds", "guessed_tokens", "right_guesses", "early_stops", "zone", "verifiers", "host", "device")
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYER_PLAN_FIELD_NUMBER: _ClassVar[int]
    OPEN_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    PLAN_TRIALS_FIELD_NUMBER: _ClassVar[int]
    PLAN_MOVES_FIELD_NUMBER: _ClassVar[int]
    SPARE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GUESSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RIGHT_GUESSES_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    VERIFIERS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    model_fingerprint: str
    layer_plan: str
    open_sequences: int
    steps: int
    drafted_tokens: int
    rolled_back_tokens: int
    step_seconds: float
    kv_blocks_used: int
    weight_bytes: int
    kv: KvCounters
    plan_trials: int
    plan_moves: int
    spare_seconds: float
    guessed_tokens: int
    right_guesses: int
    early_stops: int
    zone: str
    verifiers: int
    host: str
    device: str
    def __init__(self, model_fingerprint: _Optional[str] = ..., layer_plan: _Optional[str] = ..., open_sequences: _Optional[int] = ..., steps: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., rolled_back_tokens: _Optional[int] = ..., step_seconds: _Optional[float] = ..., kv_blocks_used: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., kv: _Optional[_Union[KvCounters, _Mapping]] = ..., plan_trials: _Optional[int] = ..., plan_moves: _Optional[int] = ..., spare_seconds: _Optional[float] = ..., guessed_tokens: _Optional[int] = ..., right_guesses: _Optional[int] = ..., early_stops: _Optional[int] = ..., zone: _Optional[str] = ..., verifiers: _Optional[int] = ..., host: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class KvCounters(_message.Message):
    __slots__ = ("mode", "pulls", "pulled_positions", "pulled_bytes", "shared_bytes", "pull_seconds", "pull_wait_seconds", "refreshed_positions", "refreshed_bytes", "fallbacks", "prefilled_positions", "prefill_seconds")
    class FallbacksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODE_FIELD_NUMBER: _ClassVar[int]
    PULLS_FIELD_NUMBER: _ClassVar[int]
    PULLED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PULLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PULL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PULL_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REFRESHED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    REFRESHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    PREFILLED_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    mode: str
    pulls: int
    pulled_positions: int
    pulled_bytes: int
    shared_bytes: int
    pull_seconds: float
    pull_wait_seconds: float
    refreshed_positions: int
    refreshed_bytes: int
    fallbacks: _containers.ScalarMap[str, int]
    prefilled_positions: int
    prefill_seconds: float
    def __init__(self, mode: _Optional[str] = ..., pulls: _Optional[int] = ..., pulled_positions: _Optional[int] = ..., pulled_bytes: _Optional[int] = ..., shared_bytes: _Optional[int] = ..., pull_seconds: _Optional[float] = ..., pull_wait_seconds: _Optional[float] = ..., refreshed_positions: _Optional[int] = ..., refreshed_bytes: _Optional[int] = ..., fallbacks: _Optional[_Mapping[str, int]] = ..., prefilled_positions: _Optional[int] = ..., prefill_seconds: _Optional[float] = ...) -> None: ...
