"""How busy several sequences keep the shards of a drafter, each on a core of its own.

The drafter is the real one; in front of it stands a verifier without a model that agrees with every
draft at once, so that what is measured is the row of shards alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc

from slipstream.bench.configurations import Progress
from slipstream.bench.processes import child, end_on_signals, wait_until_serving
from slipstream.bench.setups import Place, shard_commands
from slipstream.core.draft import Command, Commit, Open
from slipstream.core.errors import Unavailable
from slipstream.core.params import SamplingParams
from slipstream.core.prefix import PrefixChain
from slipstream.wire.draft_codec import command_to_proto, proposals_from_proto
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc, shard_pb2, shard_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

_START_SECONDS, _ANSWER_SECONDS = 900.0, 30.0
# Before the clock starts: prompts are computed and the first drafts made.
_WARM_SECONDS = 1.0
_WINDOW, _MAX_LENGTH = 8, 4000


@dataclass(frozen=True, slots=True)
class Pipelined:
    """A drafter of `shards` processes with so many sequences open.

    Attributes:
        rate: drafts per second, of all sequences.
        busy: share of the time in which each shard computed, in order; empty for one piece.
    """

    shards: int
    sequences: int
    rate: float
    busy: tuple[float, ...]


@dataclass(slots=True)
class _Open:
    """A sequence as the verifier would have it: everything that was proposed is right."""

    number: int
    tokens: list[int]
    chain: PrefixChain
    drafted: int = 0

    def agree(self, start: int, proposed: Sequence[int]) -> Command | None:
        new = list(proposed)[len(self.tokens) - start :]
        if not new:
            return None
        prefix = self.chain.at(len(self.tokens))
        self.tokens += new
        self.chain.extend(new)
        self.drafted += len(new)
        return Commit(self.number, prefix, tuple(new))


async def measure_pipelining(
    place: Place,
    prompt: Sequence[int],
    counts: Sequence[int],
    sequences: Sequence[int],
    seconds: float,
    progress: Progress,
) -> list[Pipelined]:
    """Starts one drafter after the other and drafts for some sequences at a time.

    Args:
        prompt: that every sequence begins with.
        counts: of shards. Each gets a core of its own, as far as there are enough.
        sequences: how many are open at once.

    Raises:
        SlipstreamError: a process does not get to serve, or does not answer.
    """
    end_on_signals()
    found: list[Pipelined] = []
    for count in counts:
        progress(f"starting a drafter of {count} process{'es' if count > 1 else ''}")
        async with AsyncExitStack() as stack:
            address = await _start(stack, place, count)
            for number in sequences:
                found.append(await _measure(address, prompt, count, number, seconds))
                progress(f"{count} shards, {number} sequences: {found[-1].rate:.0f} drafts/s")
    return found


async def _start(stack: AsyncExitStack, place: Place, count: int) -> str:
    """The address of shard 0."""
    commands = shard_commands(f"row-of-{count}", place, place.cpus[:1], count)
    children = []
    for index, command in zip(reversed(range(count)), commands, strict=True):
        words = list(command.words)
        words[words.index("--cpus") + 1] = str(place.cpus[index % len(place.cpus)])
        words += ["--ngram", "off", "--kv-context", "own", "--early-stop", "off"]
        children.append(await stack.enter_async_context(child(command.name, words, place.logs)))
    for started, command in zip(children, commands, strict=True):
        await wait_until_serving(started, command.address, _START_SECONDS)
    return commands[-1].address


async def _measure(
    address: str, prompt: Sequence[int], count: int, number: int, seconds: float
) -> Pipelined:
    try:
        async with channel(address) as link:
            told = await drafter_pb2_grpc.DrafterServiceStub(link).GetDrafter(
                drafter_pb2.GetDrafterRequest(), timeout=_ANSWER_SECONDS
            )
            stream = drafter_pb2_grpc.DrafterServiceStub(link).Draft()
            opened = {
                i: _Open(i, list(prompt), PrefixChain(told.model_fingerprint, prompt))
                for i in range(1, number + 1)
            }
            agreeing = asyncio.create_task(_agree(stream, told.model_fingerprint, opened))
            try:
                await _for(_WARM_SECONDS, agreeing)
                busy, before = await _busy(link, count), _drafted(opened)
                started = time.perf_counter()
                await _for(seconds, agreeing)
                elapsed = time.perf_counter() - started
                drafted = _drafted(opened) - before
                # By each shard's own clock: to ask them takes time, too.
                shares = [
                    (now.busy_seconds - was.busy_seconds) / (now.up_seconds - was.up_seconds)
                    for was, now in zip(busy, await _busy(link, count), strict=True)
                ]
            finally:
                agreeing.cancel()
                stream.cancel()
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
    return Pipelined(count, number, drafted / elapsed, tuple(shares))


async def _for(seconds: float, agreeing: asyncio.Task[None]) -> None:
    """Lets it go on for so long. Raises what ended it before that."""
    done, _ = await asyncio.wait([agreeing], timeout=seconds)
    if done:
        agreeing.result()
        raise Unavailable("the drafter ended the stream")


def _drafted(opened: dict[int, _Open]) -> int:
    return sum(each.drafted for each in opened.values())


async def _agree(
    stream: grpc.aio.StreamStreamCall, fingerprint: str, opened: dict[int, _Open]
) -> None:
    """Commits whatever is proposed, for ever."""
    async with asyncio.timeout(_ANSWER_SECONDS):
        told = drafter_pb2.DraftCommand(hello=drafter_pb2.Hello(model_fingerprint=fingerprint))
        await stream.write(drafter_pb2.DraftRequest(commands=[told]))
        await stream.read()
    await _send(stream, [_opening(each) for each in opened.values()])
    while (response := await stream.read()) is not grpc.aio.EOF:
        commands: list[Command] = []
        for proposal in proposals_from_proto(response):
            each = opened[proposal.sequence_id]
            commit = each.agree(proposal.prefix.length, proposal.tokens)
            if commit is None:
                continue
            commands.append(commit)
            if len(each.tokens) + 2 * _WINDOW > _MAX_LENGTH:
                raise Unavailable("a sequence came to its end; measure for fewer seconds")
        if commands:
            await _send(stream, commands)


def _opening(each: _Open) -> Command:
    prompt = tuple(each.tokens)
    greedy = SamplingParams(temperature=0.0)
    return Open(each.number, prompt, len(prompt), greedy, _WINDOW, _MAX_LENGTH)


async def _send(stream: grpc.aio.StreamStreamCall, commands: Sequence[Command]) -> None:
    await stream.write(drafter_pb2.DraftRequest(commands=[command_to_proto(c) for c in commands]))


async def _busy(link: grpc.aio.Channel, count: int) -> list[shard_pb2.ShardStatus]:
    """How long each shard has computed so far; nothing for a drafter in one piece."""
    if count == 1:
        return []
    row = await shard_pb2_grpc.ShardServiceStub(link).GetShard(
        shard_pb2.GetShardRequest(), timeout=_ANSWER_SECONDS
    )
    return sorted(row.shards, key=lambda one: one.index)
