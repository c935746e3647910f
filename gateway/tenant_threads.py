"""A few threads for all tenants, of which one tenant has one at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

_T = TypeVar("_T")


class TenantThreads:
    """Runs work beside the event loop.

    A tenant's work stands in a line of its own, whose head alone may take a thread: however much
    one tenant brings, another waits for what has a thread already, and no longer. Where there are
    no tenants (the name is empty) all threads are everybody's.

    Args:
        threads: at once; others wait.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, name)
        # A line is there while somebody stands in it.
        self._lines: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def run(self, work: Callable[[], _T], tenant: str) -> _T:
        """What `work` returns or raises. Cancelled, it gives up its place in the line; work that
        has begun is done nevertheless, and counts until then."""
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = asyncio.Semaphore(1 if tenant else self._threads)
        await line.acquire()
        loop, release = asyncio.get_running_loop(), line.release

        def done(_: object) -> None:
            # The loop may be closed by now: then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(release)

        future = self._pool.submit(work)
        future.add_done_callback(done)
        return await asyncio.wrap_future(future)
