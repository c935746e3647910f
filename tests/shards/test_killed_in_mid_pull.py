"""A shard that dies in the middle of fetching its context, as real processes."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time

from slipstream.core.params import SamplingParams
from tests.integration.client import Client, request
from tests.integration.processes import until
from tests.shards.test_processes import Row

SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=5)
PROMPT = tuple(3 + (7 * i) % 90 for i in range(3000))
LEASE_SECONDS = 10.0
# So small steps that the prompt takes tens of them: time to stop a shard before the last.
SMALL_STEPS = ("--step-rows", "64")


async def _stop_in_mid_pull(row: Row, client: Client, arrived: list[int]) -> bool:
    """Stops the second shard as soon as both have a lease, while the prompt is being computed.

    Returns:
        Whether that was so: on a busy machine it may be over before we look.
    """
    deadline = time.monotonic() + 60
    while not arrived and (await client.status()).kv_leases < 2:
        assert time.monotonic() < deadline, "no shard asked for keys and values"
    if not arrived:
        row.shards[1].signal(signal.SIGSTOP)
    return not arrived


async def test_sigkill_of_a_shard_in_mid_pull(tmp_path) -> None:
    """The answer is plain decoding's, no lease and no block stays with the verifier, and with a new
    shard the drafter is back."""
    (tmp_path / "model").mkdir()
    row = Row(tmp_path, *SMALL_STEPS)
    try:
        for service in (*row.shards, row.verifier):
            await asyncio.to_thread(service.wait_ready)
        async with Client(row.verifier.address) as client:
            await until(client.connected)
            arrived: list[int] = []

            async def heard(tokens: list[int]) -> None:
                arrived[:] = tokens

            deadline = time.monotonic() + 150
            for number in itertools.count():
                assert time.monotonic() < deadline, "no prompt took long enough to be stopped in"
                # A prompt that was computed before is there at once: each has keys of its own.
                asked = request(PROMPT, SAMPLED, max_tokens=200, cache_salt=f"try {number}")
                going = asyncio.create_task(client.generate(asked, heard))
                # It holds its lease and has not finished: nothing came of the prompt until after.
                if await _stop_in_mid_pull(row, client, arrived):
                    break
                await going
                await until(row.idle)
                arrived.clear()
            await until(lambda: arrived)
            assert (await client.status()).kv_leases >= 1
            row.shards[1].kill()
            bereft = (await going).tokens

            async def lost() -> bool:
                return not await client.connected()

            async def empty() -> bool:
                status = await client.status()
                return not (status.kv_leases or status.kv_leased_blocks or status.kv_blocks_used)

            await until(lost)
            row.shards[1] = row.start(1)
            await until(empty, LEASE_SECONDS + 20)
            await until(client.connected, 150)
            again = (await client.generate(asked)).tokens
            asked.speculative = False
            asked.cache_salt = "shares no keys and values with the others"
            plain = (await client.generate(asked)).tokens
            assert again == bereft == plain
            await until(row.idle)
            await until(empty)
    finally:
        for service in (*row.shards, row.verifier):
            service.kill()
