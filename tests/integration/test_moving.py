"""A generation that moves from a verifier that stops to another one, with its keys and values."""

from __future__ import annotations

import asyncio
import signal

from slipstream.wire.proto import verifier_pb2
from tests.integration.client import Client, request
from tests.integration.test_draining import OPTIONS, Stream, ended
from tests.integration.test_services import SAMPLED
from tests.verifier.rig import VOCAB

PROMPT = tuple((7 * i + i // 11) % (VOCAB - 3) + 3 for i in range(600))


async def test_it_moves_with_what_was_computed(start, tiny) -> None:
    """SIGTERM, and the rest comes from another verifier: all tokens, each once, of which little is
    computed twice. With the first one gone it is computed, and the tokens are the same."""
    options = (*OPTIONS, "--exactness", "strict", "--stop-grace", "30")
    first, second = (start("verifier", tiny, options) for _ in range(2))
    for each in (first, second):
        await asyncio.to_thread(each.wait_ready)
    async with Client(first.address) as here, Client(second.address) as there:
        expected = (await there.generate(request(PROMPT, SAMPLED, max_tokens=300))).tokens
        # What it knows now must not help it later.
        salt = {"cache_salt": "moves"}
        model = await here.stub.GetModel(verifier_pb2.GetModelRequest(), timeout=10)
        stream = Stream(here, prompt=PROMPT, **salt)
        await stream.until(40)
        first.signal(signal.SIGTERM)
        while not stream.warnings:
            assert await stream.read()
        stream.call.cancel()
        before = stream.tokens
        assert len(before) < 290
        assert before == expected[: len(before)]
        moved = request(
            PROMPT,
            SAMPLED,
            max_tokens=300,
            committed_token_ids=before,
            resumed=True,
            kv_holder=model.kv_address,
            **salt,
        )
        assert before + (await there.generate(moved)).tokens == expected
        status = await there.status()
        assert (status.kv_imports, status.kv_import_failures) == (1, 0)
        assert status.kv_imported_tokens >= 512
        assert status.kv_imported_bytes > 512 * 256
        await ended(first)
        moved.cache_salt = "moves again"
        assert before + (await there.generate(moved)).tokens == expected
        status = await there.status()
        assert (status.kv_imports, status.kv_import_failures) == (1, 1)
