"""The one place that imports generated protobuf code."""

from slipstream.v1 import (
    drafter_pb2,
    drafter_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    kv_pb2,
    kv_pb2_grpc,
    shard_pb2,
    shard_pb2_grpc,
    store_pb2,
    types_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)

__all__ = [
    "drafter_pb2",
    "drafter_pb2_grpc",
    "gateway_pb2",
    "gateway_pb2_grpc",
    "kv_pb2",
    "kv_pb2_grpc",
    "shard_pb2",
    "shard_pb2_grpc",
    "store_pb2",
    "types_pb2",
    "verifier_pb2",
    "verifier_pb2_grpc",
]
