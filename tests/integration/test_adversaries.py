"""Drafters that are wrong, silent, late or rude: the tokens stay those of plain decoding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from slipstream.core.draft import Commit
from slipstream.core.params import SamplingParams
from slipstream.wire.fake_drafter import DrafterBehaviour, FakeDrafter, random_tokens
from tests.integration.client import GREEDY, Answer, Client, request
from tests.integration.conftest import LOOK, TINY, Start
from tests.integration.processes import Service, free_address, until

PROMPT = tuple(range(10, 40))
SAMPLED = SamplingParams(temperature=1.0, top_k=50, repetition_penalty=1.1, seed=7)
BEHAVIOURS = {
    "random": DrafterBehaviour(random_tokens()),
    "silent": DrafterBehaviour(),
    "late": DrafterBehaviour(random_tokens(), delay=0.05),
    "stale": DrafterBehaviour(random_tokens(), lag=1),
    "very stale": DrafterBehaviour(random_tokens(), lag=5),
    "flooding": DrafterBehaviour(random_tokens(), flood=True),
    "beyond the vocabulary": DrafterBehaviour(lambda _t, count, vocab: [vocab, *[1] * (count - 1)]),
    "too much": DrafterBehaviour(lambda _t, _c, vocab: [vocab - 1] * 5000),
}


@pytest.fixture(scope="module")
def served(start: Start, tiny: Path) -> Iterator[tuple[Service, str]]:
    """A verifier, and the address where it looks for a drafter: free for whoever comes."""
    place = free_address()
    service = start("verifier", tiny, (*TINY, "--drafter", place, "--exactness", "strict", *LOOK))
    service.wait_ready()
    yield service, place
    service.kill()


@pytest.fixture
async def client(served: tuple[Service, str]) -> AsyncIterator[Client]:
    verifier, _ = served
    async with Client(verifier.address) as one:
        yield one
        assert verifier.process.poll() is None, verifier.log

        async def empty() -> bool:
            status = await one.status()
            return (status.requests_running, status.kv_blocks_used) == (0, 0)

        await until(empty)


def _believed(answer: Answer) -> int:
    """How many tokens of the drafter's, not of the verifier's own guesses, were accepted."""
    return answer.stats.num_accepted_tokens - answer.stats.num_accepted_guess_tokens


@pytest.mark.parametrize("name", BEHAVIOURS)
async def test_no_drafter_changes_a_token(served, client, name) -> None:
    """At temperature 0 and 1, side by side, whatever arrives as drafts: tokens, their number and
    the reason of the end are those of plain decoding."""
    asked = [(GREEDY, 80), (SAMPLED, 60), (SAMPLED, 7)]
    plain = await client.all(
        [request(PROMPT, p, max_tokens=n, speculative=False) for p, n in asked]
    )
    drafter = FakeDrafter(BEHAVIOURS[name])
    await drafter.start(served[1])
    try:
        await until(client.connected)

        def heard() -> bool:
            """Whether the drafter was told of tokens, and drafted where it does so in time."""
            told = any(isinstance(command, Commit) for command in drafter.commands)
            return told and (name not in {"random", "flooding"} or drafter.proposed > 0)

        fast: list[Answer] = []

        async def answered() -> bool:
            """On busy cores all may be over before the drafter hears of their first token."""
            nonlocal fast
            fast = await client.all(
                [request(PROMPT, p, max_tokens=n, speculative=True) for p, n in asked]
            )
            assert [(a.tokens, a.finish) for a in fast] == [(a.tokens, a.finish) for a in plain]
            return heard()

        await until(answered)
    finally:
        await drafter.stop()
    # Tokens out of the air are right by chance at most; what is stale is not even looked at.
    assert sum(map(_believed, fast)) < 30


async def test_a_drafter_that_never_answers(served, client) -> None:
    """A stream that is taken and never answered: decoding goes on, and nobody is connected."""
    async with asyncio.timeout(60):
        drafter = FakeDrafter(DrafterBehaviour(answers=False))
        await drafter.start(served[1])
        try:
            await until(lambda: drafter.connections)
            answer = await client.generate(request(PROMPT, max_tokens=40))
            assert len(answer.tokens) == 40
            assert not (await client.status()).drafter_connected
            assert drafter.commands == []
        finally:
            await drafter.stop()


async def test_the_fake_names_prefixes_as_a_drafter_does(served, client) -> None:
    """One that knows the answer is believed, so the wrong ones above were looked at, too."""
    asked = request(PROMPT, max_tokens=200, speculative=False)
    truth = [*PROMPT, *(await client.generate(asked)).tokens]
    drafter = FakeDrafter(DrafterBehaviour(lambda t, n, _vocab: truth[len(t) : len(t) + n]))
    await drafter.start(served[1])
    try:
        await until(client.connected)
        believed = 0

        async def enough() -> bool:
            """On busy cores the verifier's own guesses are often there first."""
            nonlocal believed
            answer = await client.generate(request(PROMPT, max_tokens=200, speculative=True))
            assert answer.tokens == truth[len(PROMPT) :]
            believed += _believed(answer)
            return believed > 20

        await until(enough)
    finally:
        await drafter.stop()
