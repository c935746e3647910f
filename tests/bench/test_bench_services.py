"""The client of the verifier, against a verifier that plays a script."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from slipstream.bench.services import Verifier
from slipstream.core.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidParameter,
    Unavailable,
)
from slipstream.wire.proto import types_pb2, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.status import streaming
from slipstream.wire.transport import Server, channel

FINISHED = types_pb2.FINISH_REASON_STOP


class ScriptedVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Commits the given runs of tokens, one a step; a step costs 0.5 s, 0.4 in the model."""

    def __init__(self, runs, *, finish=FINISHED, busy_polls=0):
        self.runs, self.finish, self.busy_polls = runs, finish, busy_polls
        self.steps, self.requests, self.refuse = 0, [], False

    @streaming
    async def Generate(self, request, context):  # noqa: N802
        if self.refuse:
            raise InvalidParameter("prompt_token_ids is empty", param="prompt_token_ids")
        self.requests.append(request)
        self.asked.clear()
        async with asyncio.timeout(60):
            await self.gate.wait()
        for place, run in enumerate(self.runs):
            self.steps += 1
            message = verifier_pb2.GenerateResponse(tokens=[types_pb2.Token(id=i) for i in run])
            if place == len(self.runs) - 1:
                message.finish_reason = self.finish
                message.stats.num_steps = len(self.runs)
                message.stats.num_spec_steps = 2
                message.stats.num_draft_tokens = 6
                message.stats.num_accepted_tokens = 4
            yield message
            # The client takes its counters after the first token, before the next step.
            if place == 0:
                await asyncio.wait_for(self.asked.wait(), 60)

    async def GetStatus(self, request, context):  # noqa: N802
        self.asked.set()
        self.busy_polls -= 1
        return verifier_pb2.GetStatusResponse(
            steps=self.steps,
            step_seconds=self.steps * 0.5,
            model_seconds=self.steps * 0.4,
            plain_step_seconds=0.03,
            draft_step_seconds=0.01,
            open_sequences=int(self.busy_polls >= 0),
            drafter_detail="refused: another model",
        )

    async def GetModel(self, request, context):  # noqa: N802
        return verifier_pb2.GetModelResponse(eos_token_ids=[2, 5])


@asynccontextmanager
async def connected(script, together=1):
    script.asked = asyncio.Event()
    # Nobody gets a token before so many have asked.
    script.gate = asyncio.Barrier(together)
    server = Server("127.0.0.1:0", ["slipstream.v1.VerifierService"])
    verifier_pb2_grpc.add_VerifierServiceServicer_to_server(script, server.grpc)
    port = await server.start()
    try:
        async with channel(f"127.0.0.1:{port}") as link:
            yield Verifier(verifier_pb2_grpc.VerifierServiceStub(link))
    finally:
        await server.stop(0.0)


async def test_a_generation_has_its_tokens_counts_and_cost():
    """Tokens of all messages in order; the cost is that of the steps after the first token."""
    script = ScriptedVerifier([[7], [8, 9], [10, 11, 2]], busy_polls=2)
    async with connected(script) as verifier:
        generation, cost = await verifier.generate([1, 2, 3], 16, speculative=True)
    assert generation.token_ids == (7, 8, 9, 10, 11, 2)
    assert 0.0 < generation.ttft_seconds <= generation.seconds
    assert generation.speculation is not None
    assert (generation.speculation.drafted, generation.speculation.accepted) == (6, 4)
    assert (generation.speculation.steps, generation.speculation.spec_steps) == (3, 2)
    assert cost.steps == 2
    assert cost.model_seconds / cost.step_seconds == pytest.approx(0.8)
    assert (cost.plain_step_seconds, cost.draft_step_seconds) == (0.03, 0.01)


async def test_several_start_together():
    """All requests are on their way before any has ended, and come back in order."""
    script = ScriptedVerifier([[7], [8, 2]])
    async with connected(script, together=3) as verifier:
        made = await verifier.together([[1], [2], [3]], 16, speculative=True)
    assert [generation.token_ids for generation in made] == [(7, 8, 2)] * 3
    assert [list(request.prompt_token_ids) for request in script.requests] == [[1], [2], [3]]


@pytest.mark.parametrize("speculative", [True, False])
async def test_the_request_is_greedy_and_says_whether_to_speculate(speculative):
    """Temperature 0 is set, not left out, and nothing else differs between the rows."""
    script = ScriptedVerifier([[7]])
    async with connected(script) as verifier:
        await verifier.generate([1, 2, 3], 16, speculative=speculative)
    (request,) = script.requests
    assert list(request.prompt_token_ids) == [1, 2, 3]
    assert request.sampling.HasField("temperature")
    assert request.sampling.temperature == 0.0
    assert request.stop == types_pb2.StopConditions(max_tokens=16)
    assert request.HasField("speculative")
    assert request.speculative is speculative


async def test_every_answer_pays_for_its_prompt():
    """The same prompt twice has two cache salts: the second is not found in the cache."""
    script = ScriptedVerifier([[7]])
    async with connected(script) as verifier:
        for _ in range(2):
            await verifier.generate([1, 2, 3], 1, speculative=False)
    first, second = script.requests
    assert first.cache_salt != second.cache_salt


async def test_a_stream_without_an_end_is_an_error():
    """Tokens of a stream that ends without a finish reason are not counted as a result."""
    script = ScriptedVerifier([[7], [8]], finish=types_pb2.FINISH_REASON_UNSPECIFIED)
    async with connected(script) as verifier:
        with pytest.raises(InternalError, match="finish reason"):
            await verifier.generate([1], 16, speculative=False)


async def test_a_refusal_is_told_as_the_verifier_tells_it():
    """The error of the verifier comes through with its kind."""
    script = ScriptedVerifier([[7]])
    script.refuse = True
    async with connected(script) as verifier:
        with pytest.raises(InvalidParameter, match="prompt_token_ids is empty"):
            await verifier.generate([], 16, speculative=False)


async def test_a_missing_drafter_is_told_with_the_reason():
    """The run does not measure a speculative row without a drafter."""
    async with connected(ScriptedVerifier([])) as verifier:
        with pytest.raises(DeadlineExceeded, match="refused: another model"):
            await verifier.wait_for_drafter(0.3)
        assert list((await verifier.model()).eos_token_ids) == [2, 5]


async def test_an_unreachable_verifier_is_an_error_of_ours():
    """A transport failure arrives as an error of the tree."""
    async with channel("127.0.0.1:1") as link:
        verifier = Verifier(verifier_pb2_grpc.VerifierServiceStub(link))
        with pytest.raises(Unavailable):
            await verifier.status()
