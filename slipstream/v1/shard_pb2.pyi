from slipstream.v1 import drafter_pb2 as _drafter_pb2
from slipstream.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunRequest(_message.Message):
    __slots__ = ("hello", "open", "close", "forward", "fetch", "take", "stop")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    TAKE_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    hello: ShardHello
    open: _drafter_pb2.OpenSequence
    close: _drafter_pb2.CloseSequence
    forward: Pass
    fetch: FetchContext
    take: TakeContext
    stop: StopContext
    def __init__(self, hello: _Optional[_Union[ShardHello, _Mapping]] = ..., open: _Optional[_Union[_drafter_pb2.OpenSequence, _Mapping]] = ..., close: _Optional[_Union[_drafter_pb2.CloseSequence, _Mapping]] = ..., forward: _Optional[_Union[Pass, _Mapping]] = ..., fetch: _Optional[_Union[FetchContext, _Mapping]] = ..., take: _Optional[_Union[TakeContext, _Mapping]] = ..., stop: _Optional[_Union[StopContext, _Mapping]] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("hello", "result", "arrival")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_FIELD_NUMBER: _ClassVar[int]
    hello: ShardHello
    result: PassResult
    arrival: ContextArrival
    def __init__(self, hello: _Optional[_Union[ShardHello, _Mapping]] = ..., result: _Optional[_Union[PassResult, _Mapping]] = ..., arrival: _Optional[_Union[ContextArrival, _Mapping]] = ...) -> None: ...

class ShardHello(_message.Message):
    __slots__ = ("model_fingerprint", "layer_plan", "index", "count", "dtype", "kv_blocks", "places")
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYER_PLAN_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    model_fingerprint: str
    layer_plan: str
    index: int
    count: int
    dtype: str
    kv_blocks: int
    places: _containers.RepeatedCompositeFieldContainer[ShardPlace]
    def __init__(self, model_fingerprint: _Optional[str] = ..., layer_plan: _Optional[str] = ..., index: _Optional[int] = ..., count: _Optional[int] = ..., dtype: _Optional[str] = ..., kv_blocks: _Optional[int] = ..., places: _Optional[_Iterable[_Union[ShardPlace, _Mapping]]] = ...) -> None: ...

class ShardPlace(_message.Message):
    __slots__ = ("host", "device", "cores")
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    host: str
    device: str
    cores: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, host: _Optional[str] = ..., device: _Optional[str] = ..., cores: _Optional[_Iterable[int]] = ...) -> None: ...

class Pass(_message.Message):
    __slots__ = ("number", "rows", "hidden")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    number: int
    rows: _containers.RepeatedCompositeFieldContainer[PassRows]
    hidden: bytes
    def __init__(self, number: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[PassRows, _Mapping]]] = ..., hidden: _Optional[bytes] = ...) -> None: ...

class PassRows(_message.Message):
    __slots__ = ("sequence_id", "position", "token_ids", "num_logits", "num_guesses", "rate")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGITS_FIELD_NUMBER: _ClassVar[int]
    NUM_GUESSES_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_logits: int
    num_guesses: int
    rate: bool
    def __init__(self, sequence_id: _Optional[int] = ..., position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_logits: _Optional[int] = ..., num_guesses: _Optional[int] = ..., rate: _Optional[bool] = ...) -> None: ...

class PassResult(_message.Message):
    __slots__ = ("number", "drawn", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DRAWN_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    drawn: _containers.RepeatedCompositeFieldContainer[DrawnTokens]
    error: str
    def __init__(self, number: _Optional[int] = ..., drawn: _Optional[_Iterable[_Union[DrawnTokens, _Mapping]]] = ..., error: _Optional[str] = ...) -> None: ...

class FetchContext(_message.Message):
    __slots__ = ("sequence_id", "address", "holder_sequence_id", "end", "follow")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOLDER_SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    address: str
    holder_sequence_id: int
    end: int
    follow: bool
    def __init__(self, sequence_id: _Optional[int] = ..., address: _Optional[str] = ..., holder_sequence_id: _Optional[int] = ..., end: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class TakeContext(_message.Message):
    __slots__ = ("sequence_id", "computed", "end", "token_ids")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    computed: int
    end: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_id: _Optional[int] = ..., computed: _Optional[int] = ..., end: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class StopContext(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class ContextArrival(_message.Message):
    __slots__ = ("sequence_id", "shard", "prefix", "size", "shared", "needless", "failure")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    NEEDLESS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    shard: int
    prefix: _types_pb2.Prefix
    size: int
    shared: bool
    needless: bool
    failure: str
    def __init__(self, sequence_id: _Optional[int] = ..., shard: _Optional[int] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., size: _Optional[int] = ..., shared: _Optional[bool] = ..., needless: _Optional[bool] = ..., failure: _Optional[str] = ...) -> None: ...

class DrawnTokens(_message.Message):
    __slots__ = ("token_ids", "confidence", "error")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    confidence: _containers.RepeatedScalarFieldContainer[float]
    error: str
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., confidence: _Optional[_Iterable[float]] = ..., error: _Optional[str] = ...) -> None: ...

class GetShardRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetShardResponse(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardStatus]
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardStatus, _Mapping]]] = ...) -> None: ...

class ShardStatus(_message.Message):
    __slots__ = ("index", "count", "first_layer", "end_layer", "weight_bytes", "kv_bytes", "kv_blocks_used", "resident_bytes", "open_sequences", "passes", "overlapped_passes", "busy_seconds", "up_seconds")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    OVERLAPPED_PASSES_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    count: int
    first_layer: int
    end_layer: int
    weight_bytes: int
    kv_bytes: int
    kv_blocks_used: int
    resident_bytes: int
    open_sequences: int
    passes: int
    overlapped_passes: int
    busy_seconds: float
    up_seconds: float
    def __init__(self, index: _Optional[int] = ..., count: _Optional[int] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., kv_bytes: _Optional[int] = ..., kv_blocks_used: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., open_sequences: _Optional[int] = ..., passes: _Optional[int] = ..., overlapped_passes: _Optional[int] = ..., busy_seconds: _Optional[float] = ..., up_seconds: _Optional[float] = ...) -> None: ...
