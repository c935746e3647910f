"""Clients of the verifier that do not read: what they cost, and whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch

from slipstream.bench.leaks import Watched, leaked, levels
from slipstream.core.errors import StreamUnread
from slipstream.core.params import SamplingParams
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.wire.proto import verifier_pb2
from slipstream.wire.status import error_of
from tests.integration.client import Client, request
from tests.integration.conftest import SEND_TIMEOUT
from tests.integration.processes import until
from tests.kv.rig import verifier
from verifier_service.outbox import MESSAGE_TOKENS

PROMPT = tuple(range(10, 40))
SAMPLED = SamplingParams(temperature=1.0, top_k=50, seed=7)
STREAMS = 4
# With 20 log probabilities a token is some 200 bytes: gRPC takes 300 tokens before anybody reads.
UNREAD_BYTES = 65536
LONG = request(PROMPT, SAMPLED, max_tokens=4000, logprobs=20, speculative=False)
SHORT = request(PROMPT, SAMPLED, max_tokens=30)


@pytest.fixture
def runner(tiny_model_dir: Path) -> Iterator[ModelRunner]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ModelRunner(load_model(tiny_model_dir, dtype="float32"), 1 << 22)
    torch.set_num_threads(before)


async def quiet(client: Client) -> bool:
    status = await client.status()
    return not status.requests_running + status.requests_waiting + status.kv_blocks_used


async def read(call) -> list[verifier_pb2.GenerateResponse]:
    """What a stream has still to say."""
    messages = []
    async with asyncio.timeout(60):
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    return messages


async def test_streams_that_nobody_reads(pair) -> None:
    """They hold up no other stream, on their connection or another; they are cut in mid-answer with
    a reason, and what they held is free while their client still does nothing; memory is bounded.
    """
    address = pair.verifier.address
    watched = Watched(verifier=address, pids={"verifier": pair.verifier.process.pid})
    async with Client(address) as client, Client(address, unread_bytes=UNREAD_BYTES) as rude:
        expected = (await client.generate(SHORT)).tokens
        assert (await rude.generate(SHORT)).tokens == expected
        # On a busy machine the first may be cut before the others have had their answers.
        unread, deadline = False, time.monotonic() + 150
        while not unread:
            assert time.monotonic() < deadline, "none had an answer before the first was cut"
            before, cut = await levels(watched), pair.verifier.log.count(" is cut: ")
            decided = (await client.status()).generated_tokens
            calls = [rude.stub.Generate(LONG) for _ in range(STREAMS)]
            for call in calls:
                await call.read()

            for other in (rude, client):
                assert (await other.generate(SHORT)).tokens == expected
            unread = pair.verifier.log.count(" is cut: ") == cut
            await until(lambda: quiet(client))
            # Each is told of when it is freed.
            await until(lambda cut=cut: pair.verifier.log.count(" is cut: ") >= cut + STREAMS)
        assert await leaked(watched, before, memory_slack_mib=24.0) == []
        assert pair.verifier.log.count(" is cut: ") == cut + STREAMS
        assert (await client.status()).generated_tokens - decided < STREAMS * LONG.stop.max_tokens
        assert (await rude.generate(SHORT)).tokens == expected

        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await read(call)
            error = error_of(raised.value)
            assert isinstance(error, StreamUnread)
            assert f"read nothing for {SEND_TIMEOUT:g} s" in error.message


async def test_a_client_that_reads_late(runner) -> None:
    """What a stream could not say in time waits, and comes in full messages: nothing is lost or
    said twice, and the sequence ended when it would have."""
    async with (
        # Of this one a client may leave so much unread for longer than the test can take.
        verifier(runner, pause=0.0) as one,
        Client(one.address) as client,
        Client(one.address, unread_bytes=UNREAD_BYTES) as late,
    ):
        asked = request(PROMPT, SAMPLED, max_tokens=600, logprobs=20)
        expected = (await client.generate(asked)).tokens
        call = late.stub.Generate(asked)
        first = await call.read()
        await until(lambda: quiet(client))
        messages = [first, *await read(call)]
    assert [token.id for message in messages for token in message.tokens] == expected
    # What gRPC had taken, and the rest.
    assert max(len(message.tokens) for message in messages) == MESSAGE_TOKENS
    assert [bool(message.finish_reason) for message in messages[-2:]] == [False, True]
