"""The verifier's KvService: leases by prefix, and their bytes as fast as the puller takes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar

import grpc

from slipstream.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    KvHolderRestarted,
    KvNotFound,
    ModelMismatch,
)
from slipstream.core.prefix import Prefix
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.kv_rows import dtype_name, row_bytes
from slipstream.wire.proto import kv_pb2, kv_pb2_grpc, types_pb2
from slipstream.wire.shared_memory import memory_host, open_ring
from slipstream.wire.status import streaming, unary
from verifier_service.engine import VerifierEngine
from verifier_service.kv_holder import KvHolder
from verifier_service.kv_identity import kv_identity
from verifier_service.kv_lease import Lease
from verifier_service.kv_stream import Chunk, KvStream

T = TypeVar("T")
_ENGINE_SECONDS = 30.0
_MOST_LEASE_SECONDS = 300.0
_MOST_CHUNK_BYTES = 4 * 2**20


class KvServicer(kv_pb2_grpc.KvServiceServicer):
    """Translates between gRPC and the engine's lease table.

    Args:
        address: host:port under which pullers reach us.
        incarnation: this life of the process.
    """

    def __init__(self, engine: VerifierEngine, address: str, incarnation: str) -> None:
        self._engine = engine
        self._address = address
        self._incarnation = incarnation
        self._memory_host = memory_host()

    @unary
    async def Acquire(
        self, request: kv_pb2.AcquireRequest, context: grpc.aio.ServicerContext
    ) -> kv_pb2.AcquireResponse:
        by_blocks = len(request.block_hashes) > 0
        own = self._engine.runner.loaded.fingerprint
        if by_blocks:
            own = kv_identity(self._engine.runner, self._engine.limits)
        if request.model_fingerprint != own:
            raise ModelMismatch(
                f"keys and values of model {_short(own)} are here, not of "
                f"{_short(request.model_fingerprint)}"
            )
        if by_blocks and request.block_tokens != BLOCK_TOKENS:
            raise KvNotFound(f"blocks have {BLOCK_TOKENS} tokens here, not {request.block_tokens}")
        seconds = _allowed(request.lease_seconds)
        lease = await self._granted(_asked(request, seconds))
        handle = self._handle(lease)
        handle.model_fingerprint = own
        return kv_pb2.AcquireResponse(handle=handle, memory_host=self._memory_host)

    @unary
    async def Renew(
        self, request: kv_pb2.RenewRequest, context: grpc.aio.ServicerContext
    ) -> kv_pb2.RenewResponse:
        self._check_life(request.incarnation)
        seconds = _allowed(request.lease_seconds)
        lease = await self._call(lambda kv: kv.renew(request.id, seconds))
        return kv_pb2.RenewResponse(expiry_unix_ms=int(lease.expiry * 1000))

    @unary
    async def Release(
        self, request: kv_pb2.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> kv_pb2.ReleaseResponse:
        if request.incarnation == self._incarnation:
            await self._call(lambda kv: kv.release(request.id))
        return kv_pb2.ReleaseResponse()

    @streaming
    async def Pull(
        self, request: kv_pb2.PullRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[kv_pb2.PullResponse]:
        self._check_life(request.incarnation)
        if request.start >= request.end and not request.follow:
            raise InvalidRequest(f"no position is from {request.start} to {request.end}")
        layers = tuple(request.layers)
        key, row = object(), row_bytes(self._engine.runner.pool, len(layers))
        limit = min(request.chunk_bytes or _MOST_CHUNK_BYTES, _MOST_CHUNK_BYTES)
        ring = open_ring(request.shared) if request.HasField("shared") else None
        # Not awaited: the first reads go along, as a step passes between two questions.
        kv, start, end = self._engine.kv, request.start, request.end
        begun = self._engine.call(lambda: kv.begin_pull(key, request.id, layers, start, end))
        stream = KvStream(self._engine, key, begun, row, max(1, limit // max(1, row)), ring)
        del ring
        try:
            async with aclosing(stream.known(start, end)) as chunks:
                async for chunk in chunks:
                    yield self._response(chunk, layers)
            if request.follow:
                async with aclosing(stream.following(end)) as chunks:
                    async for chunk in chunks:
                        yield self._response(chunk, layers)
        finally:
            # Not awaited, as the call may be cancelled: it happens within a step.
            self._engine.call(lambda: kv.end_pull(key))

    async def _granted(self, ask: Callable[[KvHolder], Lease]) -> Lease:
        """A lease, for a caller who is still there to hear of it."""
        granted: list[Lease] = []

        def acquire(kv: KvHolder) -> Lease:
            granted.append(ask(kv))
            return granted[0]

        try:
            return await self._call(acquire)
        except (asyncio.CancelledError, DeadlineExceeded):
            # Behind the grant, if there was one, on the thread that grants.
            self._engine.post(lambda: self._take_back(granted))
            raise

    def _take_back(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._engine.kv.release(lease.id)

    async def _call(self, action: Callable[[KvHolder], T]) -> T:
        """On the engine's thread, between two steps. Raises DeadlineExceeded."""
        engine = self._engine
        try:
            async with asyncio.timeout(_ENGINE_SECONDS):
                return await asyncio.wrap_future(engine.call(lambda: action(engine.kv)))
        except TimeoutError:
            raise DeadlineExceeded("the verifier's engine does not answer") from None

    def _check_life(self, incarnation: str) -> None:
        if incarnation != self._incarnation:
            raise KvHolderRestarted("the lease is of an earlier life of this verifier")

    def _handle(self, lease: Lease) -> kv_pb2.KvHandle:
        runner = self._engine.runner
        return kv_pb2.KvHandle(
            id=lease.id,
            model_fingerprint=runner.loaded.fingerprint,
            prefix=_prefix(lease.prefix),
            layers=runner.loaded.kv_layers,
            dtype=dtype_name(runner.pool.dtype),
            num_kv_heads=runner.pool.num_kv_heads,
            head_dim=runner.pool.head_dim,
            holder=self._address,
            incarnation=self._incarnation,
            expiry_unix_ms=int(lease.expiry * 1000),
        )

    def _response(self, chunk: Chunk, layers: tuple[int, ...]) -> kv_pb2.PullResponse:
        rows = chunk.rows
        response = kv_pb2.PullResponse(
            start=rows.start,
            end=rows.end,
            prefix=_prefix(rows.prefix),
            layers=layers,
            dtype=dtype_name(self._engine.runner.pool.dtype),
        )
        if chunk.place is None:
            response.data = rows.data.numpy().tobytes()
        else:
            response.shared.CopyFrom(chunk.place)
        return response


def _asked(request: kv_pb2.AcquireRequest, seconds: float) -> Callable[[KvHolder], Lease]:
    """What a request wants of the lease table."""
    if request.block_hashes:
        names = tuple(request.block_hashes)
        return lambda kv: kv.acquire_blocks(names, seconds)
    prefix = Prefix(request.prefix.length, request.prefix.hash)
    number = request.sequence_id if request.HasField("sequence_id") else None
    return lambda kv: kv.acquire(prefix, number, seconds)


def _short(identity: str) -> str:
    """A fingerprint's beginning, and all of what may stand behind it."""
    fingerprint, *rest = identity.split(" ", 1)
    return " ".join((fingerprint[:12], *rest))


def _prefix(prefix: Prefix) -> types_pb2.Prefix:
    return types_pb2.Prefix(length=prefix.length, hash=prefix.hash)


def _allowed(seconds: float) -> float:
    """A lease's length; raises InvalidRequest where it is no positive number."""
    if not 0 < seconds < float("inf"):
        raise InvalidRequest(f"a lease lasts some seconds, got {seconds}")
    return min(seconds, _MOST_LEASE_SECONDS)
