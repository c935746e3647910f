"""What a stream has still to say while its reader is slow."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.core.errors import Cancelled
from verifier_service.generation import CommittedToken, Finish, Progress, SpeculationCounts
from verifier_service.outbox import Outbox


def _tokens(*ids: int) -> tuple[CommittedToken, ...]:
    return tuple(CommittedToken(each) for each in ids)


async def test_what_waits_is_one_message() -> None:
    """However many steps there were: all their tokens in order, and what the last one said."""
    outbox, counts = Outbox(), SpeculationCounts(steps=3)
    outbox.put(Progress(_tokens(1, 2), counts=SpeculationCounts(steps=1)))
    outbox.put(Progress(_tokens(3)))
    outbox.put(Progress(_tokens(4), Finish.LENGTH, None, counts, cached_prompt_tokens=16))
    assert await outbox.take() == Progress(_tokens(1, 2, 3, 4), Finish.LENGTH, None, counts, 16)


async def test_nothing_is_said_twice() -> None:
    """After a message the next one holds what came since; where nothing came it waits."""
    outbox = Outbox()
    outbox.put(Progress(_tokens(1)))
    assert (await outbox.take()).tokens == _tokens(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await outbox.take()
    outbox.put(Progress(_tokens(2)))
    assert (await outbox.take()).tokens == _tokens(2)


async def test_an_error_keeps_the_tokens_before_it() -> None:
    """Tokens that were decided before a request failed are said with the error."""
    outbox, error = Outbox(), Cancelled("because")
    outbox.put(Progress(_tokens(1)))
    outbox.put(Progress(error=error))
    last = await outbox.take()
    assert (last.tokens, last.error) == (_tokens(1), error)
