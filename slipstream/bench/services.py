"""Our rows: requests straight to VerifierService.Generate, token ids in and out.

The gateway is not in the path: text, HTTP and authentication are not what is compared here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from slipstream.bench.records import EngineCost, Generation, Speculation
from slipstream.core.errors import DeadlineExceeded, InternalError
from slipstream.wire.proto import types_pb2, verifier_pb2
from slipstream.wire.status import error_of

_REQUEST_SECONDS = 600.0
_STATUS_SECONDS = 10.0
_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Verifier:
    """A running verifier, by a channel to it."""

    stub: Any

    async def status(self) -> verifier_pb2.GetStatusResponse:
        request = verifier_pb2.GetStatusRequest()
        try:
            status: verifier_pb2.GetStatusResponse = await self.stub.GetStatus(
                request, timeout=_STATUS_SECONDS
            )
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        return status

    async def model(self) -> verifier_pb2.GetModelResponse:
        request = verifier_pb2.GetModelRequest()
        try:
            model: verifier_pb2.GetModelResponse = await self.stub.GetModel(
                request, timeout=_STATUS_SECONDS
            )
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        return model

    async def wait_for_drafter(self, seconds: float) -> None:
        """Raises DeadlineExceeded, with the verifier's reason, where none connects in time."""
        deadline = time.monotonic() + seconds
        while not (status := await self.status()).drafter_connected:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"the verifier has no drafter: {status.drafter_detail}")
            await asyncio.sleep(0.2)

    async def wait_until_idle(self) -> verifier_pb2.GetStatusResponse:
        """The status once no request runs: the counters then hold all of the last one."""
        deadline = time.monotonic() + _IDLE_SECONDS
        while (status := await self.status()).requests_running or status.open_sequences:
            if time.monotonic() > deadline:
                raise DeadlineExceeded("the verifier did not become idle after a request")
            await asyncio.sleep(0.02)
        return status

    async def generate(
        self, prompt: Sequence[int], max_tokens: int, *, speculative: bool
    ) -> tuple[Generation, EngineCost]:
        """One greedy generation. Raises what the verifier answers, or InternalError."""
        request = _request(prompt, max_tokens, speculative)
        await self.wait_until_idle()
        try:
            generation, before = await self._timed(request)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        after = await self.wait_until_idle()
        cost = EngineCost(
            steps=after.steps - before.steps,
            step_seconds=after.step_seconds - before.step_seconds,
            model_seconds=after.model_seconds - before.model_seconds,
            plain_step_seconds=after.plain_step_seconds,
            draft_step_seconds=after.draft_step_seconds,
        )
        return generation, cost

    async def together(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, *, speculative: bool
    ) -> list[Generation]:
        """Greedy generations that start at the same time. Raises as `generate` does."""
        requests = [_request(prompt, max_tokens, speculative) for prompt in prompts]
        await self.wait_until_idle()
        try:
            timed = await asyncio.gather(*(self._timed(request) for request in requests))
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        await self.wait_until_idle()
        return [generation for generation, _ in timed]

    async def _timed(
        self, request: verifier_pb2.GenerateRequest
    ) -> tuple[Generation, verifier_pb2.GetStatusResponse]:
        tokens: list[int] = []
        first: float | None = None
        status: verifier_pb2.GetStatusResponse | None = None
        last: verifier_pb2.GenerateResponse | None = None
        start = time.perf_counter()
        async for message in self.stub.Generate(request, timeout=_REQUEST_SECONDS):
            tokens.extend(token.id for token in message.tokens)
            last = message
            if tokens and first is None:
                first = time.perf_counter() - start
                status = await self.status()
        seconds = time.perf_counter() - start
        if first is None or status is None or last is None or not last.finish_reason:
            raise InternalError("the verifier's stream ended without tokens or a finish reason")
        counts = last.stats
        # Acceptance is the drafter's: guesses are taken where rows are free, right or wrong.
        speculation = Speculation(
            counts.num_steps,
            counts.num_spec_steps - counts.num_guess_steps,
            counts.num_draft_tokens - counts.num_guess_tokens,
            counts.num_accepted_tokens - counts.num_accepted_guess_tokens,
        )
        return Generation(tuple(tokens), seconds, first, speculation), status


def _request(
    prompt: Sequence[int], max_tokens: int, speculative: bool
) -> verifier_pb2.GenerateRequest:
    return verifier_pb2.GenerateRequest(
        prompt_token_ids=prompt,
        sampling=types_pb2.SamplingParams(temperature=0.0, seed=0),
        stop=types_pb2.StopConditions(max_tokens=max_tokens),
        speculative=speculative,
        # Every answer pays for its prompt, however often it was asked before.
        cache_salt=secrets.token_hex(8),
    )
