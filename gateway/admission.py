"""How many requests the gateway holds at once, and when a refused one should come back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from gateway.metrics import Metrics
from slipstream.core.errors import Draining, Overloaded

# Until a first request has ended nothing is known; beyond the most, nobody can tell.
_FIRST_GUESS_SECONDS = 1.0
_MOST_RETRY_SECONDS = 30.0
# By then whoever chooses a gateway leads elsewhere, or this one is gone.
_STOPPING_RETRY_SECONDS = 1.0
# Of the newest request in the mean of the times that requests take.
_WEIGHT = 0.1


class Admission:
    """Takes requests up to a bound and refuses the rest at once, before anything is read.

    By Little's law n requests that take d seconds each leave at a rate of n/d. Every refusal is
    promised the next place that becomes free at that rate, so that those who come back do not come
    all at once; promises that nobody keeps pass with time.

    Args:
        most: requests at once.
        most_per_key: of them, for one API key; 0 for no bound of its own.
        metrics: counts refusals.

    Attributes:
        stopping: since `close`: nothing is taken any more.
    """

    def __init__(self, most: int, most_per_key: int, metrics: Metrics) -> None:
        self._most = most
        self._most_per_key = most_per_key or most
        self._running: Counter[str] = Counter()
        self._total = 0
        self.stopping = False
        self._empty = asyncio.Event()
        self._seconds = 0.0
        # Up to when places are promised, by tenant; "" is the gateway's own bound.
        self._promised: dict[str, float] = {}
        self._refused = metrics.refused

    @property
    def running(self) -> int:
        return self._total

    def close(self) -> None:
        """From now on requests are refused; those that have a place keep it."""
        self.stopping = True
        if not self._total:
            self._empty.set()

    async def empty(self) -> None:
        """Waits until nobody has a place any more, once it is closed."""
        await self._empty.wait()

    def enter(self, tenant: str) -> contextlib.AbstractContextManager[None]:
        """A place, held from now until the end of the block that the caller must enter.

        Raises:
            Draining: the gateway stops.
            Overloaded: there is none; with the seconds after which there should be.
        """
        if self.stopping:
            raise Draining(
                "the gateway is about to stop; try again, at another one where there is one",
                retry_after=_STOPPING_RETRY_SECONDS,
            )
        if self._total >= self._most:
            self._refused["gateway"] += 1
            raise Overloaded(
                f"{self._total} requests are being served, as many as the gateway takes",
                retry_after=self._retry_after("", self._total),
            )
        held = self._running[tenant]
        if tenant and held >= self._most_per_key:
            self._refused["key"] += 1
            raise Overloaded(
                f"{held} requests with this API key are being served, as many as it may have",
                retry_after=self._retry_after(tenant, held),
            )
        self._running[tenant] += 1
        self._total += 1
        return self._held(tenant, time.monotonic())

    @contextlib.contextmanager
    def _held(self, tenant: str, began: float) -> Iterator[None]:
        try:
            yield
        finally:
            self._total -= 1
            self._running[tenant] -= 1
            if not self._running[tenant]:
                # Keys come and go: nothing is kept of those that ask for nothing.
                del self._running[tenant]
            self._learn(time.monotonic() - began)
            if self.stopping and not self._total:
                self._empty.set()

    def _learn(self, seconds: float) -> None:
        weight = _WEIGHT if self._seconds else 1.0
        self._seconds += weight * (seconds - self._seconds)

    def _retry_after(self, tenant: str, running: int) -> float:
        now = time.monotonic()
        step = self._seconds / running if self._seconds else _FIRST_GUESS_SECONDS
        promised = max(now, self._promised.get(tenant, now)) + step
        self._promised[tenant] = min(promised, now + _MOST_RETRY_SECONDS)
        return self._promised[tenant] - now
