"""What a shard holds and how busy it is, and the same of those behind it."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator

import grpc

from drafter_service.engine import DrafterEngine
from drafter_service.shard_counters import ShardCounters
from drafter_service.shards import ShardedStage
from slipstream.core.errors import InvalidRequest
from slipstream.engine.memory import resident_bytes
from slipstream.engine.runner import ModelRunner
from slipstream.wire.proto import shard_pb2, shard_pb2_grpc
from slipstream.wire.status import unary
from slipstream.wire.transport import channel

log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 2.0


class GetShard(shard_pb2_grpc.ShardServiceServicer):
    """The part of the shard service that every shard has, the first one, too.

    Args:
        next_address: host:port of the next shard; empty on the last one.
    """

    def __init__(self, runner: ModelRunner, next_address: str) -> None:
        self._runner, self._next_address = runner, next_address

    @property
    @abstractmethod
    def counters(self) -> ShardCounters: ...

    @property
    @abstractmethod
    def num_open(self) -> int: ...

    @unary
    async def GetShard(
        self, request: shard_pb2.GetShardRequest, context: grpc.aio.ServicerContext
    ) -> shard_pb2.GetShardResponse:
        return shard_pb2.GetShardResponse(shards=[self._own(), *await self._behind(request)])

    async def _behind(self, request: shard_pb2.GetShardRequest) -> list[shard_pb2.ShardStatus]:
        if not self._next_address:
            return []
        async with channel(self._next_address) as link:
            stub = shard_pb2_grpc.ShardServiceStub(link)
            try:
                answer = await stub.GetShard(request, timeout=_TIMEOUT_SECONDS)
            except grpc.aio.AioRpcError as failure:
                log.info("shard %s does not tell its state: %s", self._next_address, failure.code())
                return []
        return list(answer.shards)

    def _own(self) -> shard_pb2.ShardStatus:
        loaded, pool, counters = self._runner.loaded, self._runner.pool, self.counters
        return shard_pb2.ShardStatus(
            index=loaded.shard.index,
            count=loaded.shard.count,
            first_layer=loaded.shard.layers.start,
            end_layer=loaded.shard.layers.stop,
            weight_bytes=loaded.weight_bytes,
            kv_bytes=pool.total_bytes,
            kv_blocks_used=pool.num_used,
            resident_bytes=resident_bytes(),
            open_sequences=self.num_open,
            passes=counters.passes,
            overlapped_passes=counters.overlapped,
            busy_seconds=counters.busy_seconds,
            up_seconds=time.monotonic() - counters.started,
        )


class FirstShard(GetShard):
    """What shard 0 has of the shard service."""

    def __init__(self, engine: DrafterEngine, stage: ShardedStage, next_address: str) -> None:
        super().__init__(engine.runner, next_address)
        self._engine, self._stage = engine, stage

    @property
    def counters(self) -> ShardCounters:
        return self._stage.counters

    @property
    def num_open(self) -> int:
        return self._engine.num_open

    @unary
    async def Run(
        self,
        request_iterator: AsyncIterator[shard_pb2.RunRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        # Read first: a peer whose hello cannot be written hears of that, not of the reason.
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            await anext(aiter(request_iterator), None)
        raise InvalidRequest("shard 0 of a row takes no passes: verifiers talk to it")
