"""Generations that are resumed over the wire, at a real verifier beside a real drafter."""

from __future__ import annotations

import pytest

from slipstream.core.errors import InvalidParameter
from slipstream.wire.proto import types_pb2
from tests.integration.client import Client, request
from tests.integration.processes import until
from tests.integration.test_services import BOTH, PROMPT, SAMPLED
from tests.verifier.rig import VOCAB


@pytest.fixture
async def client(pair):
    """A client of the verifier, whose drafter is connected."""
    if pair.drafter is None or pair.drafter.process.poll() is not None:
        pair.start_drafter()
    async with Client(pair.verifier.address) as one:
        await until(one.connected, 150)
        yield one


@BOTH
async def test_the_rest_is_the_same(client, params) -> None:
    """Resumed at any place, with drafts and without: the tokens that are missing, each once, and
    numbers that speak of them alone."""
    whole = await client.generate(request(PROMPT, params, max_tokens=120))
    before = await client.status()
    cuts = (1, 17, 64, 119)
    asked = [
        request(
            PROMPT,
            params,
            max_tokens=120,
            committed_token_ids=whole.tokens[:cut],
            resumed=True,
            speculative=cut % 2 == 0,
        )
        for cut in cuts
    ]
    answers = await client.all(asked)
    assert [each.tokens for each in answers] == [whole.tokens[cut:] for cut in cuts]
    assert {each.finish for each in answers} == {types_pb2.FINISH_REASON_LENGTH}
    after = await client.status()
    assert after.resumed - before.resumed == len(cuts)
    new = sum(120 - cut for cut in cuts)
    assert after.generated_tokens - before.generated_tokens == new


async def test_what_cannot_be_resumed(client) -> None:
    """Tokens that cannot be the beginning of an answer: refused by the field's name."""
    for tokens in ([5] * 9, [5, VOCAB]):
        asked = request(PROMPT, SAMPLED, max_tokens=9, committed_token_ids=tokens, resumed=True)
        error = await client.error(asked)
        assert isinstance(error, InvalidParameter)
        assert error.param == "committed_token_ids"
