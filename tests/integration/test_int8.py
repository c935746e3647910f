"""A verifier that serves its model at 8 bits, beside a drafter of the same checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from slipstream.core.params import SamplingParams
from slipstream.wire.proto import verifier_pb2
from tests.integration.client import GREEDY, Client, request
from tests.integration.conftest import COMMON, LOOK, Start
from tests.integration.processes import Service, free_address, until

PROMPT = tuple(range(10, 40))
SAMPLED = SamplingParams(temperature=1.0, top_k=50, presence_penalty=0.3, seed=7)


@pytest.fixture(scope="module")
def int8(start: Start, tiny: Path) -> Iterator[Service]:
    options = (*COMMON, "--dtype", "bfloat16", "--kv-cache-gib", "0.0625")
    address = free_address()
    drafter = start("drafter", tiny, options, address)
    verifier = start(
        "verifier", tiny, (*options, "--drafter", address, "--precision", "int8", *LOOK)
    )
    drafter.wait_ready()
    verifier.wait_ready()
    yield verifier
    verifier.kill()
    drafter.kill()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_speculative_equals_plain(int8, params) -> None:
    """Strict by itself, and token for token the same with speculation and without; the drafter
    pairs by checkpoint, whatever the precision on either side."""
    async with Client(int8.address) as client:
        await until(client.connected)
        model = await client.stub.GetModel(verifier_pb2.GetModelRequest(), timeout=60)
        assert (model.precision, model.exactness) == ("int8", "strict")
        plain = await client.generate(request(PROMPT, params, max_tokens=300, speculative=False))
        asked = request(PROMPT, params, max_tokens=300, speculative=True)
        await client.with_drafts(asked, plain.tokens)
