"""What each process of a drafter holds, in one piece and in shards."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc

from slipstream.bench.configurations import Progress
from slipstream.bench.machine import Memory, cores, memory
from slipstream.bench.processes import child, end_on_signals, wait_until_serving
from slipstream.bench.setups import Command, Place, shard_commands
from slipstream.bench.synthetic import SMALLEST, Shape, write_model
from slipstream.core.errors import ConfigurationError, InternalError
from slipstream.core.model_folder import check_split
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc, shard_pb2, shard_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

# Loading a large model takes minutes on one core.
_START_SECONDS = 900.0
_STATUS_SECONDS = 10.0
# As usual it would have millions of blocks for so small a model, and a list of them to keep.
_SMALL_POOL = ("--kv-cache-gib", "0.01")


@dataclass(frozen=True, slots=True)
class ShardsSettings:
    """What to measure.

    Attributes:
        model: its folder, or the shape of one to make up.
        counts: processes of a drafter; 1 is measured in any case, being what they are held to.

    Raises:
        ConfigurationError: a count below 1.
    """

    model: Path | Shape
    model_name: str
    out: Path
    counts: tuple[int, ...] = (1, 2, 3, 4)

    def __post_init__(self) -> None:
        if min(self.counts, default=0) < 1:
            raise ConfigurationError("counts of shards must be at least 1, as in 1,2,4")


@dataclass(frozen=True, slots=True)
class Held:
    """By one process that serves and has no sequence open. `weights`: bytes, as it says itself."""

    memory: Memory
    weights: int


@dataclass(frozen=True, slots=True)
class MemoryOfShards:
    """What was measured.

    Attributes:
        base: a drafter's process whose model is next to nothing.
        drafters: by the number of shards: what each holds, in order of their place.
    """

    base: Memory
    drafters: dict[int, tuple[Held, ...]]


async def measure_shards(settings: ShardsSettings, progress: Progress) -> MemoryOfShards:
    """Starts one drafter after the other, reads what its processes hold, and ends them.

    Raises:
        SlipstreamError: a folder cannot be written, or a process does not get to serve.
    """
    end_on_signals()
    logs = settings.out.parent / f"{settings.out.stem}-logs"
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as temporary:
        model = settings.model
        if isinstance(model, Shape):
            progress(f"writing {model.layers} layers of {model.hidden}, random weights")
            write_model(Path(temporary) / "model", model)
            model = Path(temporary) / "model"
        check_split(model, max(settings.counts))
        place = Place(model, logs, tuple(cores()))
        base = await base_memory(place)
        drafters = {}
        for count in sorted({1, *settings.counts}):
            progress(f"starting a drafter of {count} process{'es' if count > 1 else ''}")
            drafters[count] = await _measure(
                shard_commands(f"of-{count}", place, place.cpus, count), logs
            )
    return MemoryOfShards(base, drafters)


async def base_memory(place: Place) -> Memory:
    """What a drafter's process holds beside its model. Raises as `measure_shards` does."""
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder:
        write_model(Path(folder), SMALLEST)
        smallest = Place(Path(folder), place.logs, place.cpus)
        (command,) = shard_commands("base", smallest, place.cpus, 1)
        command.words.extend(_SMALL_POOL)
        (held,) = await _measure([command], place.logs)
    return held.memory


async def _measure(commands: Sequence[Command], logs: Path) -> tuple[Held, ...]:
    """Of processes in starting order, the last shard first."""
    async with AsyncExitStack() as stack:
        children = []
        for command in commands:
            started = await stack.enter_async_context(child(command.name, command.words, logs))
            children.append(started)
        for started, command in zip(children, commands, strict=True):
            await wait_until_serving(started, command.address, _START_SECONDS)
        weights = await _weights(commands[-1].address, len(commands))
        held = [memory(each.process.pid) for each in reversed(children)]
    known = [one for one in held if one is not None]
    if len(known) < len(commands):
        raise ConfigurationError("the memory of processes is read from /proc, which is not here")
    return tuple(Held(*pair) for pair in zip(known, weights, strict=True))


async def _weights(first: str, count: int) -> list[int]:
    """Bytes of weights of each shard in order; `first` is the address of shard 0."""
    try:
        async with channel(first) as link:
            if count == 1:
                drafter = drafter_pb2_grpc.DrafterServiceStub(link)
                whole = await drafter.GetDrafter(
                    drafter_pb2.GetDrafterRequest(), timeout=_STATUS_SECONDS
                )
                return [whole.weight_bytes]
            shard = shard_pb2_grpc.ShardServiceStub(link)
            row = await shard.GetShard(shard_pb2.GetShardRequest(), timeout=_STATUS_SECONDS)
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
    told = {one.index: one.weight_bytes for one in row.shards}
    if sorted(told) != list(range(count)):
        raise InternalError(f"{len(told)} of {count} shards told what they hold")
    return [told[index] for index in range(count)]
