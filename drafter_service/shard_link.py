"""Shard 0's link to its row: connects, opens the drafter to verifiers, and comes back by itself."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from drafter_service.engine import DrafterEngine
from drafter_service.servicer import DrafterServicer
from drafter_service.shard_codec import hello, num_devices, own_place, shared_cores
from drafter_service.shard_hop import Hop
from drafter_service.shards import ShardedStage
from slipstream.core.errors import SlipstreamError
from slipstream.engine.runner import ModelRunner
from slipstream.wire.transport import Server

log = logging.getLogger(__name__)
_FIRST_BACKOFF_SECONDS = 0.2
_MOST_BACKOFF_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Door:
    """The drafter's server as verifiers see it: serving and taking streams, or neither."""

    server: Server
    servicer: DrafterServicer

    async def open(self, cores: frozenset[int]) -> None:
        self.servicer.open_to_verifiers(cores)
        await self.server.set_serving(True)

    async def close(self, reason: str) -> None:
        self.servicer.close_to_verifiers(reason)
        await self.server.set_serving(False)


class ShardLink:
    """Keeps the row of shards whole, as far as it is for shard 0 to do so.

    Args:
        address: host:port of shard 1.
        passes: how many may be under way; 0: as many as shards can compute at once.
        patience: seconds that a pass may take.
        door: opened to verifiers when the row is whole, closed when it is not.
    """

    def __init__(
        self,
        address: str,
        runner: ModelRunner,
        *,
        passes: int,
        patience: float,
        door: Door,
    ) -> None:
        self._address, self._runner = address, runner
        self._passes, self._patience, self._door = passes, patience, door

    async def run(self, engine: DrafterEngine, stage: ShardedStage) -> None:
        """Connects again and again until cancelled."""
        backoff, said = _FIRST_BACKOFF_SECONDS, ""
        while True:
            whole = False
            try:
                async with Hop(self._address, self._patience) as hop:
                    depth, cores = await self._greet(hop)
                    whole, backoff = True, _FIRST_BACKOFF_SECONDS
                    engine.post(lambda: stage.up(hop.send, depth))  # noqa: B023 posted here, now
                    await self._door.open(cores)
                    await hop.run(lambda r: engine.post(lambda: stage.deliver(r)))
            except SlipstreamError as failure:
                reason = f"no row of shards: {failure.message}"
            except Exception as failure:
                log.exception("the link to the next shard failed")
                reason = f"no row of shards: internal error: {failure}"
            if whole:
                self._lose(engine, stage, reason)
            if whole or reason != said:
                log.warning("%s", reason)
            said = reason
            await self._door.close(reason)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MOST_BACKOFF_SECONDS)

    async def _greet(self, hop: Hop) -> tuple[int, frozenset[int]]:
        """How many passes may be under way, and the cores of all shards. Raises SlipstreamError."""
        answer = await hop.greet(hello(self._runner, 1))
        places = [own_place(self._runner), *answer.places]
        depth = self._passes or num_devices(places)
        log.info("%d shards are there, %d passes may be under way", len(places), depth)
        return depth, shared_cores(places)

    @staticmethod
    def _lose(engine: DrafterEngine, stage: ShardedStage, reason: str) -> None:
        def lose() -> None:
            stage.down(reason)
            engine.drop_all(reason)

        engine.post(lose)
