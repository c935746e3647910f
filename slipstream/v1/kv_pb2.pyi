from slipstream.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvHandle(_message.Message):
    __slots__ = ("id", "model_fingerprint", "prefix", "layers", "dtype", "num_kv_heads", "head_dim", "holder", "incarnation", "expiry_unix_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRY_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    model_fingerprint: str
    prefix: _types_pb2.Prefix
    layers: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    num_kv_heads: int
    head_dim: int
    holder: str
    incarnation: str
    expiry_unix_ms: int
    def __init__(self, id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., holder: _Optional[str] = ..., incarnation: _Optional[str] = ..., expiry_unix_ms: _Optional[int] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("model_fingerprint", "prefix", "sequence_id", "lease_seconds", "block_hashes", "block_tokens")
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model_fingerprint: str
    prefix: _types_pb2.Prefix
    sequence_id: int
    lease_seconds: float
    block_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    block_tokens: int
    def __init__(self, model_fingerprint: _Optional[str] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., sequence_id: _Optional[int] = ..., lease_seconds: _Optional[float] = ..., block_hashes: _Optional[_Iterable[bytes]] = ..., block_tokens: _Optional[int] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("handle", "memory_host")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HOST_FIELD_NUMBER: _ClassVar[int]
    handle: KvHandle
    memory_host: str
    def __init__(self, handle: _Optional[_Union[KvHandle, _Mapping]] = ..., memory_host: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("id", "incarnation", "lease_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: str
    lease_seconds: float
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[str] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("expiry_unix_ms",)
    EXPIRY_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    expiry_unix_ms: int
    def __init__(self, expiry_unix_ms: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("id", "incarnation")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: str
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("id", "incarnation", "layers", "start", "end", "follow", "chunk_bytes", "shared")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    start: int
    end: int
    follow: bool
    chunk_bytes: int
    shared: SharedBuffer
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., end: _Optional[int] = ..., follow: _Optional[bool] = ..., chunk_bytes: _Optional[int] = ..., shared: _Optional[_Union[SharedBuffer, _Mapping]] = ...) -> None: ...

class SharedBuffer(_message.Message):
    __slots__ = ("path", "token", "size")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    path: str
    token: bytes
    size: int
    def __init__(self, path: _Optional[str] = ..., token: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("start", "end", "prefix", "layers", "dtype", "data", "shared")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    prefix: _types_pb2.Prefix
    layers: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    data: bytes
    shared: SharedSlice
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., prefix: _Optional[_Union[_types_pb2.Prefix, _Mapping]] = ..., layers: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., data: _Optional[bytes] = ..., shared: _Optional[_Union[SharedSlice, _Mapping]] = ...) -> None: ...

class SharedSlice(_message.Message):
    __slots__ = ("offset", "size", "read")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size: int
    read: int
    def __init__(self, offset: _Optional[int] = ..., size: _Optional[int] = ..., read: _Optional[int] = ...) -> None: ...
