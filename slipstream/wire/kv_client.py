"""A client of KvService: leases by prefix, and their bytes over gRPC or through shared memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import grpc

from slipstream.core.errors import InternalError, Unavailable
from slipstream.core.kv import KvChunk, KvHandle
from slipstream.core.prefix import Prefix
from slipstream.wire.proto import kv_pb2, kv_pb2_grpc, types_pb2
from slipstream.wire.shared_memory import OwnRing, memory_host
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

_CALL_SECONDS = 5.0
_CHUNK_BYTES = 2 * 2**20
_RING_CHUNKS = 4
_MOST_RINGS = 8


class KvClient:
    """Fetches keys and values from one holder. Lives on the event loop.

    Args:
        address: host:port of the holder.
        share_memory: whether to use shared memory where the holder is on this host.
    """

    def __init__(self, address: str, *, share_memory: bool = True) -> None:
        self._channel = channel(address)
        self._stub = kv_pb2_grpc.KvServiceStub(self._channel)
        self._memory_host = memory_host() if share_memory else ""
        self._rings = 0

    async def close(self) -> None:
        await self._channel.close()

    async def acquire(
        self,
        model_fingerprint: str,
        prefix: Prefix,
        *,
        sequence_id: int | None = None,
        lease_seconds: float = 30.0,
    ) -> KvHandle:
        """A lease on a prefix. Does not wait: what is not computed yet comes with `pull`.

        Args:
            sequence_id: of several running sequences with that prefix, this one.

        Raises:
            KvNotFound: the holder does not have it. ModelMismatch: it has another model.
            Overloaded, Unavailable, DeadlineExceeded.
        """
        request = kv_pb2.AcquireRequest(
            model_fingerprint=model_fingerprint,
            prefix=types_pb2.Prefix(length=prefix.length, hash=prefix.hash),
            sequence_id=sequence_id,
            lease_seconds=lease_seconds,
        )
        return _handle(await self._ask(self._stub.Acquire, request))

    async def acquire_blocks(
        self,
        identity: str,
        names: Sequence[bytes],
        block_tokens: int,
        *,
        lease_seconds: float = 30.0,
    ) -> KvHandle:
        """A lease on the longest prefix that the holder has computed; the handle says which.

        Args:
            identity: names the model and all else that decides the bits of keys and values.
            names: of the first k * `block_tokens` tokens for k = 1, 2, ...

        Raises:
            KvNotFound: it has none. ModelMismatch: what it has was computed otherwise.
            Overloaded, Unavailable, DeadlineExceeded.
        """
        request = kv_pb2.AcquireRequest(
            model_fingerprint=identity,
            block_hashes=names,
            block_tokens=block_tokens,
            lease_seconds=lease_seconds,
        )
        return _handle(await self._ask(self._stub.Acquire, request))

    async def renew(self, handle: KvHandle, lease_seconds: float) -> float:
        """Returns the new expiry, seconds since the epoch. Raises KvExpired."""
        request = kv_pb2.RenewRequest(
            id=handle.id, incarnation=handle.incarnation, lease_seconds=lease_seconds
        )
        reply = await self._ask(self._stub.Renew, request)
        return float(reply.expiry_unix_ms / 1000)

    async def release(self, handle: KvHandle) -> None:
        request = kv_pb2.ReleaseRequest(id=handle.id, incarnation=handle.incarnation)
        await self._ask(self._stub.Release, request)

    async def pull(
        self,
        handle: KvHandle,
        layers: Sequence[int],
        start: int,
        end: int,
        *,
        follow: bool = False,
        timeout: float | None = None,
    ) -> AsyncGenerator[KvChunk]:
        """Keys and values of the positions [start, end), in order, as they are computed.

        Args:
            follow: go on behind `end` with what the sequence commits, until it ends.
            timeout: seconds for all of it.

        Raises:
            KvExpired: the lease is gone. Unavailable: the stream was cut.
            DeadlineExceeded, InvalidRequest.
        """
        ring = self._ring(handle, (end - start) * handle.row_bytes(len(layers)))
        request = kv_pb2.PullRequest(
            id=handle.id,
            incarnation=handle.incarnation,
            layers=layers,
            start=start,
            end=end,
            follow=follow,
            chunk_bytes=_CHUNK_BYTES,
            shared=None if ring is None else ring.offer,
        )
        reached = start
        call = None
        try:
            call = self._stub.Pull(request, timeout=timeout)
            async for response in call:
                if response.start != reached or response.end <= reached:
                    raise InternalError(f"a KV chunk starts at {response.start}, not {reached}")
                reached = response.end
                yield _chunk(response, ring)
                if ring is not None and reached >= end:
                    # What follows comes in messages; the memory goes with its last reader.
                    self._give_back(ring)
                    ring = None
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        except grpc.aio.UsageError as failure:
            raise Unavailable("the channel to the holder was closed") from failure
        finally:
            if call is not None:
                call.cancel()
            self._give_back(ring)
        if reached < end:
            raise Unavailable(f"the holder ended a pull at position {reached} of {end}")

    def _ring(self, handle: KvHandle, size: int) -> OwnRing | None:
        """Shared memory for a pull of so many bytes, where the holder can use it."""
        if handle.memory_host != self._memory_host or not self._memory_host or not size:
            return None
        if self._rings >= _MOST_RINGS:
            return None
        try:
            ring = OwnRing(min(size, _RING_CHUNKS * _CHUNK_BYTES))
        except OSError:
            return None
        self._rings += 1
        return ring

    def _give_back(self, ring: OwnRing | None) -> None:
        if ring is not None:
            ring.close()
            self._rings -= 1

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        except grpc.aio.UsageError as failure:
            raise Unavailable("the channel to the holder was closed") from failure


def _handle(reply: Any) -> KvHandle:
    handle = reply.handle
    return KvHandle(
        id=handle.id,
        model_fingerprint=handle.model_fingerprint,
        prefix=Prefix(handle.prefix.length, handle.prefix.hash),
        layers=tuple(handle.layers),
        dtype=handle.dtype,
        num_kv_heads=handle.num_kv_heads,
        head_dim=handle.head_dim,
        holder=handle.holder,
        incarnation=handle.incarnation,
        expiry=handle.expiry_unix_ms / 1000,
        memory_host=reply.memory_host,
    )


def _chunk(response: Any, ring: OwnRing | None) -> KvChunk:
    done: Callable[[], None] = _nothing
    shared = response.HasField("shared")
    if shared:
        place = response.shared
        if ring is None or place.offset + place.size > ring.size:
            raise InternalError("a KV chunk lies in memory that is not there")
        data = ring.data.data[place.offset : place.offset + place.size]
        count, memory = place.read, ring

        def done() -> None:
            memory.set_read(count)
    else:
        data = memoryview(response.data)
    return KvChunk(
        start=response.start,
        end=response.end,
        prefix=Prefix(response.prefix.length, response.prefix.hash),
        layers=tuple(response.layers),
        dtype=response.dtype,
        data=data,
        done=done,
        shared=shared,
    )


def _nothing() -> None:
    pass
