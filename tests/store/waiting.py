"""Waiting for something to come true, with a deadline."""

from __future__ import annotations

import asyncio
import inspect


async def eventually(condition, seconds=30.0):
    """Until a function, or a coroutine function, returns something true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        found = condition()
        if await found if inspect.isawaitable(found) else found:
            return
        assert asyncio.get_running_loop().time() < deadline, "it did not come true"
        await asyncio.sleep(0.01)
