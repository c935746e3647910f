"""The front door before real services: who leaves, or runs out of time, leaves nothing behind."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from gateway.server import serving
from gateway.settings import Settings
from slipstream.bench.leaks import Watched, leaked, levels
from tests.integration.client import Client
from tests.integration.conftest import TINY
from tests.integration.processes import until

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def services(start, tiny_model_dir, exact_plan):
    """Verifier and drafter of a model that has a tokenizer."""
    drafter = start("drafter", tiny_model_dir, (*TINY, "--layer-plan", str(exact_plan)))
    verifier = start(
        "verifier",
        tiny_model_dir,
        (
            *TINY,
            "--drafter",
            drafter.address,
            "--exactness",
            "strict",
            "--max-sequences",
            "8",
            "--max-wait",
            "600",
        ),
    )
    drafter.wait_ready()
    verifier.wait_ready()
    yield verifier, drafter
    verifier.kill()
    drafter.kill()


def ask(seed, tokens=60, **fields):
    common = {"model": "tiny", "prompt": "The quick brown fox", "ignore_eos": True}
    return common | {"seed": seed, "max_tokens": tokens} | fields


async def text_of(door, body):
    answer = await door.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


async def leave_in_mid_stream(door, body):
    async with door.stream("POST", PATH, json=body | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line:
                return answer.status_code
    return None


async def made_when_idle(verifier):
    """Tokens that the verifier has made in all, once nobody runs or waits."""
    async with Client(verifier.address) as client:

        async def idle():
            now = await client.status()
            return now.requests_running == now.requests_waiting == 0

        await until(idle)
        return (await client.status()).generated_tokens


@pytest.mark.slow
async def test_clients_that_leave_or_run_out_of_time(services, tiny_model_dir):
    """Finished, left, expired: the finished answers are right, and no service holds anything."""
    verifier, drafter = services
    settings = Settings(
        model=tiny_model_dir,
        verifier=verifier.address,
        http="127.0.0.1:0",
        grpc="127.0.0.1:0",
        served_model_name="tiny",
        stop_grace=0.2,
    )
    async with serving(settings) as gateway:
        url = f"http://127.0.0.1:{gateway.http_port}"
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as door:
            async with asyncio.timeout(60):
                while (await door.get("/ready")).status_code != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            alone = [await text_of(door, ask(seed)) for seed in range(6)]
            watched = Watched(
                gateway=url,
                verifier=verifier.address,
                drafter=drafter.address,
                pids={"verifier": verifier.process.pid, "drafter": drafter.process.pid},
            )
            before = await levels(watched)

            async def gone_early():
                """Whether one that leaves a long answer is gone from the verifier long before its
                end; now and then a busy machine may be slow to say so."""
                made = await made_when_idle(verifier)
                assert await leave_in_mid_stream(door, ask(1, tokens=900)) == 200
                return await made_when_idle(verifier) - made < 600

            await until(gone_early)
            late = await door.post(PATH, json=ask(2, tokens=900, timeout=0.05))
            assert late.status_code == 504

            chance = random.Random(7)

            async def one(number):
                match number % 4:
                    case 0:
                        seed = number // 4 % len(alone)
                        assert await text_of(door, ask(seed)) == alone[seed]
                    case 1:
                        assert await leave_in_mid_stream(door, ask(number, tokens=800)) == 200
                    case 2:
                        late = await door.post(PATH, json=ask(number, tokens=900, timeout=0.05))
                        # Refused at once where the wait is known to be longer.
                        assert late.status_code in {429, 504}
                    case _:
                        task = asyncio.create_task(door.post(PATH, json=ask(number, tokens=800)))
                        await asyncio.sleep(chance.random() / 2)
                        task.cancel()

            await asyncio.gather(*(one(number) for number in range(40)))
            assert await leaked(watched, before) == []
