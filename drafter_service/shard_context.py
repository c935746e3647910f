"""The context of a shard behind the first: fetches the layers that it keeps, as shard 0 says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from drafter_service.draft import Draft
from drafter_service.kv_fetch import Arrival, Fetch, Post
from drafter_service.kv_source import Source, Want
from drafter_service.room import Room
from drafter_service.shard_codec import arrival_to_proto
from slipstream.core.errors import InternalError, InvalidRequest
from slipstream.engine.runner import ModelRunner
from slipstream.wire.proto import shard_pb2

# Channels to verifiers that have no sequence here; more are closed.
_MOST_IDLE = 4
Up = Callable[[shard_pb2.RunResponse], None]


class ShardContext:
    """Made on the event loop, used on the engine's thread.

    Args:
        share_memory: whether to use shared memory where a verifier is on this host.
    """

    def __init__(self, runner: ModelRunner, *, share_memory: bool = True) -> None:
        self._runner, self._share_memory = runner, share_memory
        self._room = Room(runner.pool, ahead=0)
        self._loop = asyncio.get_running_loop()
        self._fetches: dict[int, Fetch] = {}
        self._sources: dict[str, Source] = {}
        self._closing: set[asyncio.Task[None]] = set()

    # ---- the engine's thread ---------------------------------------------------------------

    def fetch(self, message: shard_pb2.FetchContext, draft: Draft, post: Post, up: Up) -> None:
        """Begins to fetch for a sequence; `up` takes what is to be told of it.

        Raises:
            InvalidRequest: the sequence has no such positions. InternalError: there is no room.
        """
        number, sequence = message.sequence_id, draft.sequence
        if not 0 < message.end < len(sequence):
            raise InvalidRequest(f"{message.end} positions cannot be fetched of {len(sequence)}")
        self._reserve(draft, message.end)
        self.stop(number)
        shard = self._runner.loaded.shard.index

        def heard(arrival: Arrival) -> None:
            up(arrival_to_proto(number, shard, arrival))

        fetch = self._fetches[number] = Fetch(
            self._runner,
            sequence,
            draft.max_length,
            Want(message.holder_sequence_id, sequence.chain.at(message.end), message.follow),
            source=partial(self._source, message.address),
            loop=self._loop,
            post=post,
            heard=heard,
        )
        fetch.start()

    def take(self, message: shard_pb2.TakeContext, draft: Draft) -> None:
        """Puts in place what came for committed positions, which no pass may have been at yet.

        Raises:
            InvalidRequest: nothing is fetched, or the sequence has no such positions.
            InternalError: there is no room.
        """
        fetch, length = self._fetches.get(message.sequence_id), len(draft.sequence)
        if fetch is None:
            raise InvalidRequest(f"no context comes for sequence {message.sequence_id}")
        if message.end > length:
            raise InvalidRequest(f"{message.end} positions cannot be taken of {length}")
        self._reserve(draft, message.end)
        fetch.take(message.computed, message.end)

    def _reserve(self, draft: Draft, end: int) -> None:
        if not self._room.reserve(draft, end):
            raise InternalError("the KV pool of this shard is full, and shard 0's is not")

    def stop(self, number: int) -> None:
        """Also where nothing is fetched."""
        fetch = self._fetches.pop(number, None)
        if fetch is not None:
            fetch.stop()

    def end(self) -> None:
        """The row has ended."""
        for number in list(self._fetches):
            self.stop(number)
        self._loop.call_soon_threadsafe(self._close_all)

    # ---- the event loop --------------------------------------------------------------------

    def _source(self, address: str) -> Source:
        if address not in self._sources:
            self._close_idle(_MOST_IDLE)
            share = self._share_memory
            self._sources[address] = Source(self._runner, address, share_memory=share)
        return self._sources[address]

    def _close_idle(self, keep: int) -> None:
        """Closes channels that nothing comes through, the oldest first, but for `keep` of them."""
        idle = [address for address, source in self._sources.items() if source.idle]
        for address in idle[: max(0, len(idle) - keep)]:
            self._close(address)

    def _close_all(self) -> None:
        for address in list(self._sources):
            self._close(address)

    def _close(self, address: str) -> None:
        task = asyncio.create_task(self._sources.pop(address).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
