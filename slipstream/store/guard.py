"""A store that nobody waits for longer than a deadline, and that is left alone while it is down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from slipstream.core.errors import StoreUnavailable
from slipstream.store.breaker import Breaker
from slipstream.store.interface import (
    Append,
    AppendResult,
    Document,
    Fenced,
    IndexFull,
    LogView,
    Store,
    VersionConflict,
)

log = logging.getLogger(__name__)

# How a call ended: answered; answered by VersionConflict, Fenced or IndexFull; not in time; the
# store failed; not tried, since the store is down; given up by its caller.
Outcome = Literal["ok", "conflict", "timeout", "unavailable", "refused", "cancelled"]
State = Literal["ok", "degraded"]

_CLOSE_SECONDS = 2.0
# So late a timer fires only where the event loop was held up: the answer may be there already.
_LAG_SECONDS = 0.02

T = TypeVar("T")


class GuardedStore:
    """Implements `Store` over another one, with a deadline for every call and a circuit breaker.

    Its errors tell clients that the store is unavailable, and operators why (`inner`).

    After some failures in a row the breaker opens: every call then fails at once, while a
    background task asks the store with pings, ever less often. The first that works closes it.
    While the store seems well, the task looks after it now and then, so that trouble shows without
    calls, too. One event loop owns it. `start` comes first, `close` last.

    Args:
        timeout: seconds that a call may take, whatever the store does. Time in which the event
            loop itself was held up is not counted.
        failures: so many in a row open the breaker.
        probe: seconds to the first ping after that, doubled from one to the next...
        probe_most: ...up to this.
        watch: seconds between pings while the store seems well.
        on_call: is told the operation, its outcome and its seconds.

    Attributes:
        calls: how many there were, by operation and outcome.
        answer_seconds: what the last answer took; None: there was none.
    """

    def __init__(
        self,
        store: Store,
        timeout: float = 0.25,
        *,
        failures: int = 3,
        probe: float = 0.1,
        probe_most: float = 2.0,
        watch: float = 5.0,
        on_call: Callable[[str, Outcome, float], None] | None = None,
    ) -> None:
        self.calls: Counter[tuple[str, Outcome]] = Counter()
        self.answer_seconds: float | None = None
        self._store = store
        self._timeout = timeout
        self._breaker = Breaker(failures, "the session store")
        self._probe, self._probe_most, self._watch = probe, probe_most, watch
        self._on_call = on_call
        self._prober: asyncio.Task[None] | None = None
        # Calls past their deadline that have yet to end. The event loop keeps no task alive.
        self._late: set[asyncio.Task[Any]] = set()

    @property
    def state(self) -> State:
        return "degraded" if self._breaker.is_open else "ok"

    @property
    def detail(self) -> str:
        """What is wrong with the store; empty while nothing is."""
        return self._breaker.detail

    @property
    def degraded_seconds(self) -> float:
        """For how long the store has been unavailable by now; 0 while it is not."""
        return self._breaker.seconds

    async def start(self) -> None:
        """Finds out how the store is, and looks after it from then on. Raises nothing."""
        try:
            await self._ping()
        except StoreUnavailable as failure:
            self._breaker.open(failure.inner)
        self._prober = asyncio.create_task(self._look_after(), name="session store")

    async def close(self) -> None:
        """Closes the store, too; waits 2 s at most."""
        if self._prober is not None:
            self._prober.cancel()
        for task in self._late:
            task.cancel()
        closing = asyncio.ensure_future(self._store.close())
        await asyncio.wait({closing, *self._late}, timeout=_CLOSE_SECONDS)
        if not closing.done():
            closing.cancel()
        elif not closing.cancelled() and (failure := closing.exception()) is not None:
            log.warning("closing the session store: %s", failure)

    async def get(self, key: str) -> Document | None:
        return await self._call("get", lambda: self._store.get(key))

    async def put(self, key: str, value: bytes, *, ttl: float, expect: int | None = None) -> int:
        return await self._call("put", lambda: self._store.put(key, value, ttl=ttl, expect=expect))

    async def delete(self, key: str, *, expect: int | None = None) -> bool:
        return await self._call("delete", lambda: self._store.delete(key, expect=expect))

    async def log_open(self, log: str, fence: int, *, ttl: float) -> LogView:
        return await self._call("log_open", lambda: self._store.log_open(log, fence, ttl=ttl))

    async def log_append(self, items: Sequence[Append]) -> list[AppendResult]:
        return await self._call("log_append", lambda: self._store.log_append(items))

    async def log_read(self, log: str, start: int = 0) -> LogView | None:
        return await self._call("log_read", lambda: self._store.log_read(log, start))

    async def log_delete(self, log: str) -> None:
        await self._call("log_delete", lambda: self._store.log_delete(log))

    async def index_add(
        self, index: str, member: str, *, ttl: float, most: int | None = None
    ) -> None:
        await self._call(
            "index_add", lambda: self._store.index_add(index, member, ttl=ttl, most=most)
        )

    async def index_remove(self, index: str, member: str) -> None:
        await self._call("index_remove", lambda: self._store.index_remove(index, member))

    async def index_list(self, index: str, after: str = "", limit: int = 100) -> list[str]:
        return await self._call("index_list", lambda: self._store.index_list(index, after, limit))

    async def ping(self) -> None:
        await self._call("ping", self._store.ping)

    async def _call(self, operation: str, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._breaker.is_open:
            self._count(operation, "refused", 0.0)
            raise _unavailable(self._breaker.detail)
        return await self._bounded(operation, begin)

    async def _bounded(self, operation: str, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A call within its deadline; the breaker and the counts are told."""
        loop, since = asyncio.get_running_loop(), self._breaker.openings
        began = loop.time()
        task = loop.create_task(begin())
        outcome: Outcome = "cancelled"
        try:
            await _ended_or_late(task, began + self._timeout)
            outcome = "unavailable" if task.done() else "timeout"
            answer = self._answer(task)
            outcome = "ok"
            return answer
        except (VersionConflict, Fenced, IndexFull):
            outcome = "conflict"
            raise
        except StoreUnavailable as failure:
            if not self._breaker.is_open:
                log.info("the session store failed at %s: %s", operation, failure.message)
            self._breaker.failed(since, failure.message)
            raise _unavailable(failure.message) from failure
        finally:
            seconds = loop.time() - began
            if outcome in {"ok", "conflict"}:
                self.answer_seconds = seconds
                self._breaker.worked(since)
            if not task.done():
                self._leave(task)
            self._count(operation, outcome, seconds)

    def _answer(self, task: asyncio.Task[T]) -> T:
        if not task.done():
            raise StoreUnavailable(f"no answer from the session store within {self._timeout:g} s")
        if task.cancelled():
            raise StoreUnavailable("the session store gave the call up")
        return task.result()

    def _leave(self, task: asyncio.Task[Any]) -> None:
        """Nobody waits for it any more, not even until it has noticed."""

        def ended(task: asyncio.Task[Any]) -> None:
            self._late.discard(task)
            # Asked for, or the event loop would report that nobody did.
            if not task.cancelled():
                task.exception()

        task.cancel()
        self._late.add(task)
        task.add_done_callback(ended)

    def _count(self, operation: str, outcome: Outcome, seconds: float) -> None:
        self.calls[operation, outcome] += 1
        if self._on_call is not None:
            self._on_call(operation, outcome, seconds)

    async def _ping(self) -> None:
        await self._bounded("ping", self._store.ping)
        self._breaker.close()

    async def _look_after(self) -> None:
        pause = self._probe
        while True:
            if not self._breaker.is_open:
                pause = self._probe
                await self._idle(self._probe if self._breaker.in_a_row else self._watch)
            if self._breaker.is_open:
                # Spread, so that many gateways do not knock at the same moments.
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(2 * pause, self._probe_most)
            with contextlib.suppress(StoreUnavailable):
                await self._ping()

    async def _idle(self, seconds: float) -> None:
        """Until the breaker opens, and so long at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._breaker.opened.wait()


def _unavailable(why: str) -> StoreUnavailable:
    """What a store says names its host, or its file: that is no client's business."""
    return StoreUnavailable("the session store is unavailable; try again soon", inner=why)


async def _ended_or_late(task: asyncio.Task[Any], deadline: float) -> None:
    loop = asyncio.get_running_loop()
    done, _ = await asyncio.wait({task}, timeout=deadline - loop.time())
    late = loop.time() - deadline
    if not done and late > _LAG_SECONDS:
        # The event loop was held up, by other work, for so long: no fault of the store.
        await asyncio.wait({task}, timeout=late)
