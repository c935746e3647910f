"""Nothing stays behind: the leak check itself, and the gateway under clients that come and go."""

from __future__ import annotations

import asyncio
import os
import random

import grpc
import httpx

from slipstream.bench.leaks import Watched, leaked, levels
from slipstream.core.errors import Overloaded
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.transport import channel


def watched(rig):
    return Watched(gateway=rig.url, verifier=rig.fake.address, pids={"gateway": os.getpid()})


async def test_the_check_finds_what_is_held(rig, eventually):
    """A request in progress is told by both services, with its task and sockets; then it is not."""
    await rig.complete("x")
    before = await levels(watched(rig))
    rig.fake.behaviour = FakeBehaviour([5, 6], hang_after=1)
    held = asyncio.create_task(rig.complete("x", n=2))
    await eventually(lambda: rig.fake.running == 2)
    port = rig.running.http_port
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    found = await leaked(watched(rig), before, seconds=0)
    for name in (
        "gateway, in use: requests: 1,",
        "gateway, in use: calls to the verifier: 2,",
        "gateway, tasks: ",
        "gateway, sockets: ",
        "verifier, in use: requests running: 2,",
    ):
        assert any(line.startswith(name) for line in found), (name, found)
    held.cancel()
    for _, writer in idle:
        writer.close()
    await eventually(lambda: rig.fake.running == 0)
    assert await leaked(watched(rig), before) == []


async def over_http(rig, number, body):
    """Leaves at once, after a moment, in mid-stream or never."""
    async with httpx.AsyncClient(base_url=rig.url, timeout=20, verify=False) as client:
        if number % 4 == 0:
            return (await client.post("/v1/completions", json=body)).status_code
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            if number % 4 == 1:
                return answer.status_code
            async for _ in answer.aiter_lines():
                if number % 4 == 2:
                    break
            return answer.status_code


async def over_grpc(rig, number):
    async with channel(rig.grpc_address) as link:
        sampling = types_pb2.SamplingParams(seed=number)
        request = gateway_pb2.GatewayServiceGenerateRequest(text="x", n=2, sampling=sampling)
        seconds = 0.05 if number % 4 == 0 else 10
        call = gateway_pb2_grpc.GatewayServiceStub(link).Generate(request, timeout=seconds)
        try:
            async for _ in call:
                if number % 4 == 1:
                    call.cancel()
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass


async def test_clients_that_come_and_go(make_rig):
    """After clients that finish, fail, leave early or in mid-stream, or run out of time: nothing.

    No request, call, task, socket or sequence is left, and the next answer is right.
    """

    def tokens(prompt, params, i):
        if params.seed % 7 == 6:
            raise Overloaded("no room", retry_after=1.0)
        return 50

    async with make_rig(tokens, max_requests=40) as rig:
        rig.fake.behaviour = FakeBehaviour([5])
        await over_http(rig, 0, {"model": "tiny-chat", "prompt": "x"})
        await over_grpc(rig, 3)
        before = await levels(watched(rig))
        rig.fake.behaviour = FakeBehaviour(tokens, delay=0.005, first_delay=0.02)
        chance = random.Random(4)

        async def one(number):
            body = {"model": "tiny-chat", "prompt": "x", "seed": number, "max_tokens": 30, "n": 2}
            if number % 5 == 0:
                await over_grpc(rig, number)
            elif number % 5 == 1:
                task = asyncio.create_task(over_http(rig, number, body))
                await asyncio.sleep(chance.random() / 10)
                task.cancel()
            elif number % 5 == 2:
                await over_http(rig, number, body | {"timeout": 0.06})
            else:
                await over_http(rig, number, body)

        await asyncio.gather(*(one(number) for number in range(80)))
        assert rig.fake.cancelled
        # This process is fake and clients, too: its memory is not the gateway's.
        assert await leaked(watched(rig), before, memory_slack_mib=512) == []
        rig.fake.behaviour = FakeBehaviour([5, 6, 7])
        assert (await rig.complete("x")).json()["usage"]["completion_tokens"] == 3
