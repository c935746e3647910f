"""Our rows: requests straight to VerifierService.Generate, token ids in and out.

The gateway is not in the path: text, HTTP and authentication are not what is compared here.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from slipstream.bench.processes import Child, child, free_address, wait_until_serving
from slipstream.bench.records import EngineCost, Generation, Speculation
from slipstream.core.errors import DeadlineExceeded, InternalError
from slipstream.wire.proto import types_pb2, verifier_pb2, verifier_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

_START_SECONDS = 300.0
_REQUEST_SECONDS = 600.0
_STATUS_SECONDS = 10.0
_IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Verifier:
    """A verifier process, its drafter where it has one, and a channel to it."""

    processes: tuple[Child, ...]
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

    async def eos_token_ids(self) -> frozenset[int]:
        try:
            model = await self.stub.GetModel(
                verifier_pb2.GetModelRequest(), timeout=_STATUS_SECONDS
            )
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        return frozenset(model.eos_token_ids)

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
        request = verifier_pb2.GenerateRequest(
            prompt_token_ids=prompt,
            sampling=types_pb2.SamplingParams(temperature=0.0, seed=0),
            stop=types_pb2.StopConditions(max_tokens=max_tokens),
            speculative=speculative,
        )
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
        speculation = Speculation(
            counts.num_steps,
            counts.num_spec_steps,
            counts.num_draft_tokens,
            counts.num_accepted_tokens,
        )
        return Generation(tuple(tokens), seconds, first, speculation), status


async def start_verifier(
    stack: AsyncExitStack,
    model: Path,
    logs: Path,
    *,
    name: str,
    cpus: Sequence[int],
    drafter_cpu: int | None,
    exactness: str,
    verifier_options: Sequence[str] = (),
    drafter_options: Sequence[str] = (),
) -> Verifier:
    """Starts a bf16 verifier on the given cores, with a drafter on `drafter_cpu` if not None.

    Options are words of the services' command lines. Both end with `stack`.

    Raises what `wait_until_serving` and `wait_for_drafter` raise.
    """
    common = ["--model", str(model), "--dtype", "bfloat16", "--device", "cpu"]
    processes: list[Child] = []
    drafter_address = "off"
    if drafter_cpu is not None:
        drafter_address = free_address()
        command = [*_service("drafter_service", drafter_address, [drafter_cpu]), *common]
        command += drafter_options
        processes.append(await stack.enter_async_context(child(f"{name}-drafter", command, logs)))
        await wait_until_serving(processes[-1], drafter_address, _START_SECONDS)
    address = free_address()
    command = [*_service("verifier_service", address, cpus), *common]
    command += ["--drafter", drafter_address, "--exactness", exactness, *verifier_options]
    processes.append(await stack.enter_async_context(child(f"{name}-verifier", command, logs)))
    await wait_until_serving(processes[-1], address, _START_SECONDS)
    link = await stack.enter_async_context(channel(address))
    stub = verifier_pb2_grpc.VerifierServiceStub(link)
    verifier = Verifier(tuple(processes), stub)
    if drafter_cpu is not None:
        await verifier.wait_for_drafter(60.0)
    return verifier


def _service(module: str, address: str, cpus: Sequence[int]) -> list[str]:
    pinned = ["--threads", str(len(cpus)), "--cpus", ",".join(map(str, cpus))]
    return [sys.executable, "-m", module, "--listen", address, *pinned, "--log-level", "warning"]
