"""A client of the verifier, as the gateway is one."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

import grpc

from slipstream.core.errors import SlipstreamError
from slipstream.core.params import SamplingParams
from slipstream.wire.codec import sampling_to_proto
from slipstream.wire.proto import (
    drafter_pb2,
    drafter_pb2_grpc,
    types_pb2,
    verifier_pb2,
    verifier_pb2_grpc,
)
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

DEADLINE_SECONDS = 100.0
GREEDY = SamplingParams(temperature=0.0)


@dataclasses.dataclass(slots=True)
class Answer:
    """A generation as it arrived."""

    tokens: list[int]
    finish: int = 0
    stats: Any = None
    seed: int = 0


def request(
    prompt: Sequence[int],
    params: SamplingParams = GREEDY,
    *,
    max_tokens: int = 32,
    ignore_eos: bool = True,
    **fields: Any,
) -> verifier_pb2.GenerateRequest:
    return verifier_pb2.GenerateRequest(
        request_id="test",
        prompt_token_ids=prompt,
        sampling=sampling_to_proto(params),
        stop=types_pb2.StopConditions(max_tokens=max_tokens, ignore_eos=ignore_eos),
        **fields,
    )


class Client:
    """Talks to one verifier, by a connection of its own. Use it as an async context manager."""

    def __init__(self, address: str, *, unread_bytes: int | None = None) -> None:
        self._channel = channel(address, unread_bytes=unread_bytes)
        self.stub = verifier_pb2_grpc.VerifierServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    async def generate(
        self,
        asked: verifier_pb2.GenerateRequest,
        after: Callable[[list[int]], Awaitable[None]] | None = None,
    ) -> Answer:
        """The whole answer; `after` is called after each message with the tokens so far.

        Raises:
            SlipstreamError: what the verifier answered instead.
        """
        answer = Answer([])
        try:
            async for message in self.stub.Generate(asked, timeout=DEADLINE_SECONDS):
                assert not answer.finish, "nothing may come after the last message"
                answer.tokens += [token.id for token in message.tokens]
                answer.finish, answer.stats = message.finish_reason, message.stats
                answer.seed = message.seed
                if after is not None:
                    await after(answer.tokens)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        return answer

    async def with_drafts(
        self,
        asked: verifier_pb2.GenerateRequest,
        expected: Sequence[int] | None = None,
        *,
        guesses: bool = False,
    ) -> Answer:
        """The first answer in which drafts of the drafter's were right. Asked for again and again,
        as on a busy machine an answer may be over before any draft is there; each has the
        `expected` tokens.

        Args:
            guesses: whether those of the verifier's own will do, too: where it is left to the
                verifier, it may rightly find on busy cores that a drafter does not pay.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            answer = await self.generate(asked)
            assert expected is None or answer.tokens == list(expected)
            stats = answer.stats
            others = 0 if guesses else stats.num_accepted_guess_tokens
            if stats.num_accepted_tokens > others:
                return answer
            assert time.monotonic() < deadline, "no draft was ever accepted"

    async def all(
        self, asked: Sequence[verifier_pb2.GenerateRequest], most: int = 1000
    ) -> list[Answer]:
        """Side by side, so many at a time."""
        places = asyncio.Semaphore(most)

        async def in_turn(one: verifier_pb2.GenerateRequest) -> Answer:
            async with places:
                return await self.generate(one)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(one)) for one in asked]
        return [task.result() for task in tasks]

    async def error(self, asked: verifier_pb2.GenerateRequest) -> SlipstreamError:
        """What the verifier refuses it with."""
        try:
            await self.generate(asked)
        except SlipstreamError as failure:
            return failure
        raise AssertionError("the verifier took it")

    async def status(self) -> verifier_pb2.GetStatusResponse:
        asked = verifier_pb2.GetStatusRequest()
        return await self.stub.GetStatus(asked, timeout=60, wait_for_ready=True)

    async def connected(self) -> bool:
        return bool((await self.status()).drafter_connected)


async def drafter_status(address: str) -> drafter_pb2.GetDrafterResponse:
    async with channel(address) as link:
        stub = drafter_pb2_grpc.DrafterServiceStub(link)
        asked = drafter_pb2.GetDrafterRequest()
        return await stub.GetDrafter(asked, timeout=60, wait_for_ready=True)
