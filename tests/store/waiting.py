"""Waiting for something to come true, with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import inspect

from slipstream.core.errors import StoreUnavailable


async def eventually(condition, seconds=60.0):
    """Until a function, or a coroutine function, returns something true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        assert asyncio.get_running_loop().time() < deadline, "it did not come true"
        await asyncio.sleep(0.01)


async def patiently(call, *args, **options):
    """A call's answer, though a busy machine may make some tries late."""
    answers = []

    async def once():
        with contextlib.suppress(StoreUnavailable):
            answers.append(await call(*args, **options))
        return answers

    await eventually(once)
    return answers[0]
