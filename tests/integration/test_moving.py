"""A generation that moves from a verifier that stops to another one, with its keys and values."""

from __future__ import annotations

import asyncio
import signal

from slipstream.wire.proto import verifier_pb2
from tests.integration.client import Client, request
from tests.integration.test_draining import OPTIONS, UNREAD_BYTES, Stream, ended
from tests.integration.test_services import SAMPLED
from tests.verifier.rig import VOCAB

# What moves, one after the other until one had its keys and values in time.
SALTS = ("moves", "moves if not the first", "moves if none of these")
# So long a holder that was too slow is not asked again.
SHUNNED_SECONDS = 5.5
PROMPT = tuple((7 * i + i // 11) % (VOCAB - 3) + 3 for i in range(600))


async def test_it_moves_with_what_was_computed(start, tiny) -> None:
    """SIGTERM, and the rest comes from another verifier: all tokens, each once, of which little is
    computed twice. With the first one gone it is computed, and the tokens are the same."""
    options = (*OPTIONS, "--exactness", "strict", "--stop-grace", "90")
    first, second = (start("verifier", tiny, options) for _ in range(2))
    for each in (first, second):
        await asyncio.to_thread(each.wait_ready)
    async with (
        Client(first.address, unread_bytes=UNREAD_BYTES) as here,
        Client(second.address) as there,
    ):
        expected = (await there.generate(request(PROMPT, SAMPLED, max_tokens=300))).tokens
        model = await here.stub.GetModel(verifier_pb2.GetModelRequest(), timeout=60)
        # What it knows now must not help it later.
        streams = {salt: Stream(here, prompt=PROMPT, cache_salt=salt) for salt in SALTS}
        for stream in streams.values():
            await stream.until(40)
        first.signal(signal.SIGTERM)
        for stream in streams.values():
            while not stream.warnings:
                assert await stream.read()
            assert stream.tokens[:300] == expected[: len(stream.tokens)]
        for failed, (salt, stream) in enumerate(streams.items()):
            # More may have come than is told of: what is missing is decided again.
            before = stream.tokens[:100]
            stream.call.cancel()
            moved = request(
                PROMPT,
                SAMPLED,
                max_tokens=300,
                committed_token_ids=before,
                resumed=True,
                kv_holder=model.kv_address,
                cache_salt=salt,
            )
            assert before + (await there.generate(moved)).tokens == expected
            status = await there.status()
            assert status.kv_imports + status.kv_import_failures == failed + 1
            # On a busy machine what is not there in time is computed; one after a while is.
            if status.kv_imports:
                break
            await asyncio.sleep(SHUNNED_SECONDS)
        assert status.kv_imports == 1
        assert status.kv_imported_tokens >= 512
        assert status.kv_imported_bytes > 512 * 256
        for stream in streams.values():
            stream.call.cancel()
        await ended(first)
        moved.cache_salt = "moves again"
        assert before + (await there.generate(moved)).tokens == expected
        status = await there.status()
        assert (status.kv_imports, status.kv_import_failures) == (1, failed + 1)
