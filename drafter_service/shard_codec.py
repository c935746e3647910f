"""What shards say to each other: passes, what was drawn, and who they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch

from drafter_service.draft import Draft, Work
from drafter_service.kv_fetch import Arrival
from drafter_service.kv_source import Want
from drafter_service.stage import Drawn
from slipstream.core.draft import Open
from slipstream.core.errors import ConfigurationError, InvalidRequest, ModelMismatch
from slipstream.core.prefix import Prefix
from slipstream.engine.placement import computing_cores
from slipstream.engine.runner import ModelRunner
from slipstream.wire.draft_codec import command_to_proto
from slipstream.wire.host import host_id
from slipstream.wire.proto import shard_pb2, types_pb2


def to_bytes(hidden: torch.Tensor) -> bytes:
    """[rows, size], row by row."""
    return hidden.contiguous().cpu().view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, size: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, size], a copy. Raises InvalidRequest where that is no whole number of rows."""
    if not data or len(data) % (size * dtype.itemsize):
        raise InvalidRequest(f"{len(data)} bytes are not rows of {size} numbers in {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype).view(-1, size)


def open_to_proto(number: int, draft: Draft) -> shard_pb2.RunRequest:
    """A sequence as it is now, under shard 0's own number for it."""
    sequence = draft.sequence
    command = Open(
        number,
        tuple(sequence.tokens),
        sequence.num_prompt,
        sequence.params,
        0,
        draft.max_length,
        draft.cache_salt,
    )
    return shard_pb2.RunRequest(open=command_to_proto(command).open)


def fetch_to_proto(number: int, address: str, want: Want) -> shard_pb2.FetchContext:
    return shard_pb2.FetchContext(
        sequence_id=number,
        address=address,
        holder_sequence_id=want.sequence_id,
        end=want.prefix.length,
        follow=want.follow,
    )


def arrival_to_proto(number: int, shard: int, arrival: Arrival) -> shard_pb2.RunResponse:
    prefix = arrival.prefix
    message = shard_pb2.ContextArrival(
        sequence_id=number,
        shard=shard,
        prefix=None if prefix is None else types_pb2.Prefix(length=prefix.length, hash=prefix.hash),
        size=arrival.size,
        shared=arrival.shared,
        needless=arrival.needless,
        failure=arrival.failure,
    )
    return shard_pb2.RunResponse(arrival=message)


def arrival_from_proto(message: shard_pb2.ContextArrival) -> Arrival:
    prefix = message.prefix if message.HasField("prefix") else None
    return Arrival(
        None if prefix is None else Prefix(prefix.length, prefix.hash),
        message.size,
        message.shared,
        message.needless,
        message.failure,
    )


def rows_to_proto(number: int, item: Work) -> shard_pb2.PassRows:
    segment = item.segment
    return shard_pb2.PassRows(
        sequence_id=number,
        position=segment.position,
        token_ids=segment.tokens,
        num_logits=segment.num_logits,
        num_guesses=len(item.guesses),
        rate=item.rate,
    )


def result_to_proto(number: int, drawn: Sequence[Drawn]) -> shard_pb2.RunResponse:
    messages = [
        shard_pb2.DrawnTokens(token_ids=d.tokens, confidence=d.confidence, error=d.error)
        for d in drawn
    ]
    return shard_pb2.RunResponse(result=shard_pb2.PassResult(number=number, drawn=messages))


def drawn_from_proto(message: shard_pb2.PassResult, count: int) -> list[Drawn]:
    """One for each of `count` sequences. Raises InvalidRequest where there are more or fewer."""
    if message.error:
        return [Drawn(error=message.error)] * count
    if len(message.drawn) != count:
        raise InvalidRequest(f"a pass of {count} sequences came back with {len(message.drawn)}")
    return [Drawn(tuple(d.token_ids), tuple(d.confidence), d.error) for d in message.drawn]


def own_place(runner: ModelRunner) -> shard_pb2.ShardPlace:
    device = runner.loaded.device
    cores = computing_cores(device)
    return shard_pb2.ShardPlace(host=host_id(), device=str(device), cores=sorted(cores))


def hello(
    runner: ModelRunner, index: int, places: Sequence[shard_pb2.ShardPlace] = ()
) -> shard_pb2.ShardHello:
    """Of a shard's model, said to or by shard `index`."""
    loaded = runner.loaded
    return shard_pb2.ShardHello(
        model_fingerprint=loaded.fingerprint,
        layer_plan=loaded.plan.digest(),
        index=index,
        count=loaded.shard.count,
        dtype=str(loaded.dtype).removeprefix("torch."),
        kv_blocks=runner.pool.num_blocks,
        places=places,
    )


def check_hello(theirs: shard_pb2.ShardHello, own: shard_pb2.ShardHello) -> None:
    """Raises ModelMismatch or ConfigurationError where two shards cannot work together."""
    for field, what in (("model_fingerprint", "model"), ("layer_plan", "layer plan")):
        mine, other = getattr(own, field), getattr(theirs, field)
        if mine != other:
            raise ModelMismatch(
                f"this shard has {what} {mine[:12]}, the one before it {other[:12]}; "
                f"start all shards with the same {what}"
            )
    for field, option in (
        ("index", "--shard-index and --next"),
        ("count", "--shard-count"),
        ("dtype", "--dtype"),
        ("kv_blocks", "--kv-cache-gib"),
    ):
        mine, other = getattr(own, field), getattr(theirs, field)
        if mine != other:
            raise ConfigurationError(
                f"the shard before this one expects {field} {other} here, and it is {mine}; "
                f"check {option} of all shards"
            )


def shared_cores(places: Sequence[shard_pb2.ShardPlace]) -> frozenset[int]:
    """Cores of the first shard's host that any shard computes on."""
    return frozenset(core for p in places if p.host == places[0].host for core in p.cores)


def num_devices(places: Sequence[shard_pb2.ShardPlace]) -> int:
    """How many shards can compute at once: those that share a device or cores take turns."""
    group = list(range(len(places)))
    for i, j in combinations(range(len(places)), 2):
        if _shared(places[i], places[j]):
            group = [group[i] if g == group[j] else g for g in group]
    return len(set(group))


def _shared(one: shard_pb2.ShardPlace, other: shard_pb2.ShardPlace) -> bool:
    if one.host != other.host or one.device != other.device:
        return False
    # Without a list of cores nothing is known but that the device is the same.
    return not one.cores or not other.cores or bool(set(one.cores) & set(other.cores))
