"""A sharded drafter driven by hand: what is on its way between shards moves when told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from drafter_service.confidence import Stopping
from drafter_service.engine import DrafterEngine
from drafter_service.guesses import Assist, Assistance
from drafter_service.shard_engine import ShardEngine, Stream
from drafter_service.shards import ShardedStage
from slipstream.core.errors import SlipstreamError
from slipstream.engine.runner import ModelRunner
from slipstream.wire.proto import shard_pb2
from tests.drafter.rig import DrafterRig


class RowRig(DrafterRig):
    """Shard 0's engine, and those of the others, without threads.

    Attributes:
        shards: the engines behind the first.
        down: what is on its way to each of them.
        up: responses on their way to shard 0.
        failures: what ended the stream.
    """

    def __init__(
        self,
        runners: Sequence[ModelRunner],
        depth: int,
        *,
        ngram: Assistance = "off",
        early_stop: Stopping = "off",
        assist: Assist | None = None,
    ) -> None:
        super().__init__(runners[0], ngram=ngram, early_stop=early_stop)
        self.assist = assist or self.assist
        self.stage = ShardedStage(runners[0])
        self.depth = depth
        self.engine = DrafterEngine(
            runners[0],
            lambda *message: self.sent.append(message),
            stage=self.stage,
            parts=[self.stage],
            assist=self.assist,
            early_stop=self.early_stop,
        )
        self.shards = [ShardEngine(runner) for runner in runners[1:]]
        self.failures: list[SlipstreamError] = []
        self.connect()

    def connect(self) -> None:
        """A new row of streams; nothing of the old ones arrives."""
        self.down: list[deque[shard_pb2.RunRequest]] = [deque() for _ in self.shards]
        self.up: deque[shard_pb2.RunResponse] = deque()
        up = self.up
        self.streams = []
        for index, shard in enumerate(self.shards):
            onward = None if shard is self.shards[-1] else self.down[index + 1].append
            self.streams.append(Stream(onward, lambda r: up.append(_wire(r)), self.failures.append))
            shard.begin(self.streams[-1])
        self.engine.post(lambda: self.stage.up(self.down[0].append, self.depth))

    def cut(self, reason: str = "a shard is gone") -> None:
        """A shard is lost."""
        self.engine.post(lambda: (self.stage.down(reason), self.engine.drop_all(reason)))
        for shard, stream in zip(self.shards, self.streams, strict=True):
            shard.end(stream)

    def move(self, hop: int) -> bool:
        """One message over a hop; the last one is the way back. Whether there was any."""
        queue = [*self.down, self.up][hop]
        if not queue:
            return False
        message = queue.popleft()
        if hop == len(self.down):
            self.engine.post(lambda: self.stage.deliver(message))
        else:
            shard = self.shards[hop]
            shard.obey(self.streams[hop], _wire(message))
            shard.step()
        return True

    def step(self) -> bool:
        worked = super().step()
        assert not self.failures, self.failures
        return worked

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if not (self.step() or any(self.move(hop) for hop in range(len(self.down) + 1))):
                return
        raise AssertionError("still busy")

    def check_empty(self) -> None:
        for shard in self.shards:
            shard.step()
            assert shard.num_open == 0
            assert shard.runner.pool.num_used == 0


def _wire(message):
    """As it arrives: through bytes."""
    return type(message).FromString(message.SerializeToString())
