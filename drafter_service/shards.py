"""Shard 0's side of a row of shards: a stage whose passes end on other processes."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence

from drafter_service.draft import Draft, Part, Work
from drafter_service.kv_fetch import Arrival
from drafter_service.kv_source import Want
from drafter_service.shard_codec import (
    arrival_from_proto,
    drawn_from_proto,
    fetch_to_proto,
    open_to_proto,
    rows_to_proto,
    to_bytes,
)
from drafter_service.shard_counters import ShardCounters
from drafter_service.stage import Done, Drawn
from slipstream.core.errors import SlipstreamError
from slipstream.engine.runner import ModelRunner
from slipstream.wire.proto import drafter_pb2, shard_pb2

log = logging.getLogger(__name__)
Send = Callable[[shard_pb2.RunRequest], None]
Heard = Callable[[Draft, int, Arrival], None]


class ShardedStage(Part):
    """Computes the first part of a pass and sends it down the row; the tokens come back later.

    All on the engine's thread. Messages are obeyed in the order in which they were sent, so the
    other shards see a sequence opened, rolled back and closed between the same two passes as this
    one, and their pools hold the same sequences when a pass reaches them.

    Attributes:
        depth: how many passes may be under way; 0 while the row is not whole.
    """

    movable = False
    # The other shards keep no cache that would say what they have.
    shareable = False

    def __init__(self, runner: ModelRunner) -> None:
        self.depth = 0
        # Takes what comes of the shards' contexts.
        self.heard: Heard | None = None
        self.counters = ShardCounters()
        self._runner = runner
        self._send: Send | None = None
        self._sequences: dict[Draft, int] = {}
        self._drafts: dict[int, Draft] = {}
        self._under_way: dict[int, tuple[Sequence[Work], Done]] = {}
        self._numbers = itertools.count(1)

    def up(self, send: Send, depth: int) -> None:
        """The row is whole, and knows of no sequence."""
        self._send, self.depth = send, depth

    def down(self, reason: str) -> None:
        """A shard is lost, and with it all that the row knew: every pass under way fails."""
        self._send, self.depth = None, 0
        self._sequences.clear()
        self._drafts.clear()
        lost, self._under_way = self._under_way, {}
        for work, done in lost.values():
            done(work, [Drawn(error=reason)] * len(work))

    def submit(self, work: Sequence[Work], done: Done) -> None:
        assert self._send is not None, "there is no depth without a row of shards"
        number = next(self._numbers)
        with self.counters.computing():
            hidden = self._runner.forward([item.segment for item in work])
            rows = [rows_to_proto(self._number(item.draft), item) for item in work]
            message = shard_pb2.Pass(number=number, rows=rows, hidden=to_bytes(hidden))
        self._send(shard_pb2.RunRequest(forward=message))
        self.counters.overlapped += bool(self._under_way)
        self._under_way[number] = (work, done)

    def deliver(self, response: shard_pb2.RunResponse) -> None:
        """Something came up the row."""
        if response.HasField("result"):
            self._finish(response.result)
            return
        draft = self._drafts.get(response.arrival.sequence_id)
        if draft is not None and self.heard is not None:
            self.heard(draft, response.arrival.shard, arrival_from_proto(response.arrival))

    def _finish(self, result: shard_pb2.PassResult) -> None:
        if result.number not in self._under_way:
            log.warning("a pass came back that is not under way")
            return
        work, done = self._under_way.pop(result.number)
        try:
            drawn = drawn_from_proto(result, len(work))
        except SlipstreamError as failure:
            drawn = [Drawn(error=failure.message)] * len(work)
        done(work, drawn)

    def closed(self, draft: Draft) -> None:
        number = self._sequences.pop(draft, None)
        if number is None:
            return
        del self._drafts[number]
        if self._send is not None:
            close = drafter_pb2.CloseSequence(sequence_id=number)
            self._send(shard_pb2.RunRequest(close=close))

    # ---- contexts of the other shards ------------------------------------------------------

    @property
    def there(self) -> bool:
        return self._send is not None

    @property
    def count(self) -> int:
        return self._runner.loaded.shard.count - 1

    def fetch(self, draft: Draft, address: str, want: Want) -> None:
        assert self._send is not None
        message = fetch_to_proto(self._number(draft), address, want)
        self._send(shard_pb2.RunRequest(fetch=message))

    def take(self, draft: Draft, computed: int, end: int) -> None:
        number = self._sequences.get(draft)
        if number is not None and self._send is not None:
            message = shard_pb2.TakeContext(
                sequence_id=number,
                computed=computed,
                end=end,
                token_ids=draft.sequence.tokens[computed:end],
            )
            self._send(shard_pb2.RunRequest(take=message))

    def stop(self, draft: Draft) -> None:
        number = self._sequences.get(draft)
        if number is not None and self._send is not None:
            self._send(shard_pb2.RunRequest(stop=shard_pb2.StopContext(sequence_id=number)))

    def _number(self, draft: Draft) -> int:
        """The row's number of a sequence, which is opened on it when it is first spoken of."""
        if draft not in self._sequences:
            assert self._send is not None
            number = self._sequences[draft] = next(self._numbers)
            self._drafts[number] = draft
            self._send(open_to_proto(number, draft))
        return self._sequences[draft]
