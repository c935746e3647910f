from slipstream.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "sampling", "stop", "speculative", "logprobs", "tenant", "cache_salt", "priority", "deadline_seconds", "committed_token_ids", "resumed", "kv_holder")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    KV_HOLDER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _types_pb2.SamplingParams
    stop: _types_pb2.StopConditions
    speculative: bool
    logprobs: int
    tenant: str
    cache_salt: str
    priority: int
    deadline_seconds: float
    committed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    resumed: bool
    kv_holder: str
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., stop: _Optional[_Union[_types_pb2.StopConditions, _Mapping]] = ..., speculative: _Optional[bool] = ..., logprobs: _Optional[int] = ..., tenant: _Optional[str] = ..., cache_salt: _Optional[str] = ..., priority: _Optional[int] = ..., deadline_seconds: _Optional[float] = ..., committed_token_ids: _Optional[_Iterable[int]] = ..., resumed: _Optional[bool] = ..., kv_holder: _Optional[str] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("tokens", "finish_reason", "stats", "seed", "cached_prompt_tokens", "draining_seconds")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[_types_pb2.Token]
    finish_reason: _types_pb2.FinishReason
    stats: _types_pb2.SpeculationStats
    seed: int
    cached_prompt_tokens: int
    draining_seconds: float
    def __init__(self, tokens: _Optional[_Iterable[_Union[_types_pb2.Token, _Mapping]]] = ..., finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., stats: _Optional[_Union[_types_pb2.SpeculationStats, _Mapping]] = ..., seed: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., draining_seconds: _Optional[float] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model_id", "fingerprint", "context_length", "vocab_size", "eos_token_ids", "dtype", "device", "exactness", "precision", "incarnation", "kv_address", "zone", "draining")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    EXACTNESS_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    KV_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ZONE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    fingerprint: str
    context_length: int
    vocab_size: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    device: str
    exactness: str
    precision: str
    incarnation: str
    kv_address: str
    zone: str
    draining: bool
    def __init__(self, model_id: _Optional[str] = ..., fingerprint: _Optional[str] = ..., context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., exactness: _Optional[str] = ..., precision: _Optional[str] = ..., incarnation: _Optional[str] = ..., kv_address: _Optional[str] = ..., zone: _Optional[str] = ..., draining: _Optional[bool] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("drafter_connected", "drafter_detail", "requests_running", "requests_waiting", "kv_cache_usage", "steps", "step_seconds", "model_seconds", "generated_tokens", "prompt_tokens", "draft_tokens", "accepted_tokens", "stale_draft_tokens", "plain_step_seconds", "draft_step_seconds", "drafter_connections", "kv_blocks_used", "open_sequences", "draft_tokens_per_position", "accepted_tokens_per_position", "kv_leases", "kv_leased_blocks", "guess_tokens", "accepted_guess_tokens", "placement", "placement_on_trial", "draft_length", "draft_worth", "preemptions", "cached_prompt_tokens", "kv_blocks_cached", "expected_wait_seconds", "draining", "resumed", "kv_imports", "kv_imported_tokens", "kv_imported_bytes", "kv_import_failures", "drafter_address", "round_trip_seconds", "round_trips", "without_drafter_seconds")
    DRAFTER_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_DETAIL_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_USAGE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STALE_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLAIN_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    OPEN_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_PER_POSITION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_PER_POSITION_FIELD_NUMBER: _ClassVar[int]
    KV_LEASES_FIELD_NUMBER: _ClassVar[int]
    KV_LEASED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    GUESS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_GUESS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_ON_TRIAL_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_WORTH_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    KV_IMPORTS_FIELD_NUMBER: _ClassVar[int]
    KV_IMPORTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_IMPORTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_IMPORT_FAILURES_FIELD_NUMBER: _ClassVar[int]
    DRAFTER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_DRAFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    drafter_connected: bool
    drafter_detail: str
    requests_running: int
    requests_waiting: int
    kv_cache_usage: float
    steps: int
    step_seconds: float
    model_seconds: float
    generated_tokens: int
    prompt_tokens: int
    draft_tokens: int
    accepted_tokens: int
    stale_draft_tokens: int
    plain_step_seconds: float
    draft_step_seconds: float
    drafter_connections: int
    kv_blocks_used: int
    open_sequences: int
    draft_tokens_per_position: _containers.RepeatedScalarFieldContainer[int]
    accepted_tokens_per_position: _containers.RepeatedScalarFieldContainer[int]
    kv_leases: int
    kv_leased_blocks: int
    guess_tokens: int
    accepted_guess_tokens: int
    placement: str
    placement_on_trial: bool
    draft_length: int
    draft_worth: float
    preemptions: int
    cached_prompt_tokens: int
    kv_blocks_cached: int
    expected_wait_seconds: float
    draining: bool
    resumed: int
    kv_imports: int
    kv_imported_tokens: int
    kv_imported_bytes: int
    kv_import_failures: int
    drafter_address: str
    round_trip_seconds: float
    round_trips: int
    without_drafter_seconds: float
    def __init__(self, drafter_connected: _Optional[bool] = ..., drafter_detail: _Optional[str] = ..., requests_running: _Optional[int] = ..., requests_waiting: _Optional[int] = ..., kv_cache_usage: _Optional[float] = ..., steps: _Optional[int] = ..., step_seconds: _Optional[float] = ..., model_seconds: _Optional[float] = ..., generated_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., stale_draft_tokens: _Optional[int] = ..., plain_step_seconds: _Optional[float] = ..., draft_step_seconds: _Optional[float] = ..., drafter_connections: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ..., open_sequences: _Optional[int] = ..., draft_tokens_per_position: _Optional[_Iterable[int]] = ..., accepted_tokens_per_position: _Optional[_Iterable[int]] = ..., kv_leases: _Optional[int] = ..., kv_leased_blocks: _Optional[int] = ..., guess_tokens: _Optional[int] = ..., accepted_guess_tokens: _Optional[int] = ..., placement: _Optional[str] = ..., placement_on_trial: _Optional[bool] = ..., draft_length: _Optional[int] = ..., draft_worth: _Optional[float] = ..., preemptions: _Optional[int] = ..., cached_prompt_tokens: _Optional[int] = ..., kv_blocks_cached: _Optional[int] = ..., expected_wait_seconds: _Optional[float] = ..., draining: _Optional[bool] = ..., resumed: _Optional[int] = ..., kv_imports: _Optional[int] = ..., kv_imported_tokens: _Optional[int] = ..., kv_imported_bytes: _Optional[int] = ..., kv_import_failures: _Optional[int] = ..., drafter_address: _Optional[str] = ..., round_trip_seconds: _Optional[float] = ..., round_trips: _Optional[int] = ..., without_drafter_seconds: _Optional[float] = ...) -> None: ...
