"""Real drafters in any number: one is killed, and the verifier goes on with the next."""

from __future__ import annotations

import asyncio

from slipstream.wire.proto import verifier_pb2
from tests.integration.client import Client, drafter_status, request
from tests.integration.conftest import LOOK, TINY
from tests.integration.processes import until
from tests.integration.test_services import PROMPT, SAMPLED


async def test_killed_and_replaced(start, tiny, exact_plan) -> None:
    """SIGKILL of the drafter in mid-generation: the tokens are the same, the other drafter takes
    over what is open, and GetModel and the status say who is who."""
    plan = ("--layer-plan", str(exact_plan))
    started = {zone: start("drafter", tiny, (*TINY, *plan, "--zone", zone)) for zone in "ab"}
    drafters = {each.address: each for each in started.values()}
    zones = {each.address: zone for zone, each in started.items()}
    options = ("--drafter", ",".join(drafters), "--zone", "a", "--exactness", "strict", *LOOK)
    for each in drafters.values():
        await asyncio.to_thread(each.wait_ready)
    service = start("verifier", tiny, (*TINY, *options))
    await asyncio.to_thread(service.wait_ready)
    async with Client(service.address) as client:
        await until(client.connected)
        # That of its zone, unless that answered too late on a busy machine.
        near = (await client.status()).drafter_address
        (far,) = drafters.keys() - {near}
        described = await drafter_status(near)
        assert (described.zone, described.verifiers) == (zones[near], 1)
        assert described.host
        model = await client.stub.GetModel(verifier_pb2.GetModelRequest(), timeout=60)
        assert (model.zone, model.kv_address) == ("a", service.address)
        assert model.incarnation
        assert not model.draining
        asked = request(PROMPT, SAMPLED, max_tokens=400)
        expected = (await client.generate(asked)).tokens

        async def kill_at_100(tokens: list[int]) -> None:
            if len(tokens) > 100 and drafters[near].process.poll() is None:
                drafters[near].kill()

        answer = await client.generate(asked, kill_at_100)
        assert answer.tokens == expected

        async def paired() -> bool:
            return (await client.status()).drafter_address == far

        await until(paired)

        async def drafts_again() -> bool:
            """The other drafter's drafts count; on a busy machine a short answer may outrun it."""
            again = await client.generate(asked)
            assert again.tokens == expected
            return again.stats.num_accepted_tokens > again.stats.num_accepted_guess_tokens

        await until(drafts_again)
    assert service.process.poll() is None, service.log
