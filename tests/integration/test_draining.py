"""SIGTERM at a verifier that has work: what it says, what it still does, and when it ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import grpc
import pytest

from slipstream.core.errors import Draining, Unavailable
from slipstream.wire.proto import types_pb2, verifier_pb2
from slipstream.wire.transport import is_serving
from tests.integration.client import Client, request
from tests.integration.processes import WAIT_SECONDS
from tests.integration.test_services import PROMPT, SAMPLED

# So much of an answer comes ahead of what its client reads, and what comes behind that keeps the
# stream open: with 20 log probabilities a token is some 200 bytes.
UNREAD_BYTES, LARGE = 65536, {"logprobs": 20}
OPTIONS = ("--threads", "1", "--dtype", "float32", "--kv-cache-gib", "0.0625")


class Stream:
    """A long generation, and what its client has heard of it.

    It is not over before it has been read, however fast the verifier is, if its client lets only
    UNREAD_BYTES come ahead.
    """

    def __init__(
        self, client: Client, max_tokens: int = 1500, prompt: Sequence[int] = PROMPT, **fields: str
    ) -> None:
        asked = request(prompt, SAMPLED, max_tokens=max_tokens, **LARGE, **fields)
        self.call = client.stub.Generate(asked, timeout=100)
        self.tokens: list[int] = []
        self.finish = 0
        self.warnings: list[float] = []

    async def read(self) -> bool:
        """One message; False at the end."""
        message = await self.call.read()
        if message is grpc.aio.EOF:
            return False
        self.tokens += [token.id for token in message.tokens]
        self.finish = message.finish_reason
        if message.HasField("draining_seconds"):
            assert not message.tokens
            self.warnings.append(message.draining_seconds)
        return True

    async def rest(self) -> None:
        while await self.read():
            pass

    async def until(self, count: int) -> None:
        while len(self.tokens) < count:
            assert await self.read()


@pytest.fixture
async def verifier(start, tiny, request: pytest.FixtureRequest):
    """A verifier without a drafter; the parameter is its grace."""
    grace = getattr(request, "param", "60")
    service = start("verifier", tiny, (*OPTIONS, "--stop-grace", grace))
    await asyncio.to_thread(service.wait_ready)
    yield service
    service.kill()


async def ended(service) -> None:
    assert await asyncio.to_thread(service.process.wait, WAIT_SECONDS) == 0, service.log
    assert "Traceback" not in service.log, service.log


async def attempt(client: Client, expected: list[int]) -> str:
    """A short request: served in full, or refused in words that let it go elsewhere."""
    try:
        answer = await client.generate(request(PROMPT, max_tokens=5))
    except Unavailable as refusal:
        return "draining" if isinstance(refusal, Draining) else "gone"
    assert answer.tokens == expected
    return "served"


async def test_what_runs_goes_on_to_its_end(verifier) -> None:
    """After SIGTERM, and another: a stream is told once and gets all of its tokens, requests that
    come are served or told, none is lost, and the process ends with 0 once nothing is left."""
    async with (
        Client(verifier.address) as client,
        Client(verifier.address, unread_bytes=UNREAD_BYTES) as reader,
    ):
        expected = await client.generate(request(PROMPT, SAMPLED, max_tokens=1500))
        short = (await client.generate(request(PROMPT, max_tokens=5))).tokens
        stream = Stream(reader)
        await stream.until(50)
        flood = [asyncio.create_task(attempt(client, short)) for _ in range(40)]
        verifier.signal(signal.SIGTERM)
        flood += [asyncio.create_task(attempt(client, short)) for _ in range(40)]
        while not stream.warnings:
            assert await stream.read()
        assert 10 < stream.warnings[0] <= 60
        verifier.signal(signal.SIGTERM)
        outcomes = await asyncio.gather(*flood)
        assert set(outcomes) <= {"served", "draining"}, outcomes
        assert isinstance(await client.error(request(PROMPT)), Draining)
        model = await client.stub.GetModel(verifier_pb2.GetModelRequest(), timeout=60)
        status = await client.status()
        assert model.draining
        assert status.draining
        assert not await is_serving(verifier.address)
        await stream.rest()
        assert stream.tokens == expected.tokens
        assert stream.finish == types_pb2.FINISH_REASON_LENGTH
        assert len(stream.warnings) == 1
        await ended(verifier)


@pytest.mark.parametrize("verifier", ["60"], indirect=True)
async def test_it_ends_when_all_have_moved(verifier) -> None:
    """Clients that leave when they are told of it: it does not wait for its grace."""
    async with Client(verifier.address, unread_bytes=UNREAD_BYTES) as client:
        streams = [Stream(client) for _ in range(3)]
        for stream in streams:
            await stream.until(10)
        verifier.signal(signal.SIGTERM)
        for stream in streams:
            while not stream.warnings:
                assert await stream.read()
            stream.call.cancel()
        await ended(verifier)


@pytest.mark.parametrize("verifier", ["0.2"], indirect=True)
async def test_what_outlives_the_grace_may_be_resumed(verifier) -> None:
    """A stream that is still there when the grace is over ends as one that others may go on with,
    and what it had heard is the beginning of the whole."""
    async with Client(verifier.address, unread_bytes=UNREAD_BYTES) as client:
        expected = (await client.generate(request(PROMPT, SAMPLED, max_tokens=200))).tokens
        stream = Stream(client, max_tokens=3900)
        await stream.until(10)
        verifier.signal(signal.SIGINT)
        with pytest.raises(grpc.aio.AioRpcError, match="grace is over") as failure:
            await stream.rest()
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len(stream.tokens) >= 10
        assert stream.tokens[:200] == expected[: len(stream.tokens)]
        await ended(verifier)
