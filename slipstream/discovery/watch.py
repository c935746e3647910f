"""Follows the EndpointSlices of one Service: list, then watch from there, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from slipstream.core.errors import ClusterUnavailable
from slipstream.discovery.service import Service
from slipstream.discovery.slices import Slice

if TYPE_CHECKING:
    from slipstream.discovery.api import Slices

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for what. Seconds.

    Attributes:
        answer: for a list, and for the credentials before it.
        watch: that one watch lasts. So a connection that leads nowhere is found out: a watch that
            is well ends by then.
        resync: between two lists, in case that an event was lost on the way.
        first, most: of the pause after a failure, which doubles with each and is up to a half
            shorter by lot, as all pods lose an API server at once.
        lasting: for a watch that is to count as a success.
        stale: until what was known is no longer better than what DNS says.
    """

    answer: float = 10.0
    watch: float = 60.0
    resync: float = 600.0
    first: float = 0.5
    most: float = 30.0
    lasting: float = 1.0
    stale: float = 60.0


class ServiceWatch:
    """What the API server says of one Service. Lives on the event loop.

    Args:
        told: called when the slices or the state are other ones.

    Attributes:
        listed: whether slices were ever had.
        failure: why nothing is heard at present; None where all is well, or nothing was tried yet.
    """

    def __init__(
        self, service: Service, told: Callable[[], None], patience: Patience | None = None
    ) -> None:
        self.service = service
        self.listed = False
        self.failure: ClusterUnavailable | None = None
        self._told = told
        self._patience = patience or Patience()
        self._slices: dict[str, Slice] = {}
        # Where the next watch begins; empty: a list comes first.
        self._version = ""
        self._listed_at = self._fresh_at = self._begun_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    @property
    def slices(self) -> list[Slice]:
        """As they were last heard of."""
        return list(self._slices.values())

    @property
    def stale(self) -> bool:
        """Whether there is nothing, or nothing that is still worth much."""
        if not self.listed:
            return True
        old = time.monotonic() - self._fresh_at > self._patience.stale
        return self.failure is not None and old

    def start(self) -> None:
        """Begins, where it has not begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"watch {self.service}")

    def stop(self) -> None:
        """Nothing more is asked; what was heard stays."""
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Stops, and waits until all is closed."""
        self.stop()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def tried(self, seconds: float) -> None:
        """Until the first try has succeeded or failed, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._tried.wait()

    async def _run(self) -> None:
        # Half a second of imports, beside what the event loop does.
        api: ModuleType = await asyncio.to_thread(
            importlib.import_module, "slipstream.discovery.api"
        )
        failures = 0
        while True:
            try:
                async with api.connected(self.service, self._patience.answer) as slices:
                    await self._follow(slices)
            except ClusterUnavailable as failure:
                lasted = time.monotonic() - self._begun_at
                if self._begun_at and lasted > self._patience.lasting:
                    failures = 0
                failures += 1
                self._begun_at = 0.0
                if failure.status:
                    # It is there, and has something against what was asked.
                    self._version = ""
                if failure.status == 410 and failures == 1:
                    # No fault at all: the list tells what was missed.
                    log.debug("Service %s: %s", self.service, failure.message)
                    continue
                self._failed(failure)
                await asyncio.sleep(self._pause(failures))

    def _pause(self, failures: int) -> float:
        longest = min(self._patience.most, self._patience.first * 2.0 ** min(failures - 1, 16))
        return longest * random.uniform(0.5, 1.0)

    async def _follow(self, slices: Slices) -> None:
        """Never returns. Raises ClusterUnavailable."""
        patience = self._patience
        while True:
            due = time.monotonic() - self._listed_at > patience.resync
            if not self._version or due:
                await self._list(slices)
            await self._watch(slices)
            self._fresh_at = time.monotonic()
            if self._fresh_at - self._begun_at < min(patience.lasting, patience.watch / 2):
                # It may have had no time to tell anything: a list does.
                self._version = ""
                raise ClusterUnavailable(
                    "the API server ends each watch at once", short="no watch lasts"
                )

    async def _watch(self, slices: Slices) -> None:
        """One watch, until it ends as it should."""
        async with slices.watch(self._version, self._patience.watch) as events:
            self._begun_at = self._fresh_at = time.monotonic()
            loop = asyncio.get_running_loop()
            # One that ends at once is no sign that all is well.
            well = loop.call_later(self._patience.lasting, self._recovered)
            try:
                async for kind, found in events:
                    self._take(kind, found)
            finally:
                well.cancel()

    async def _list(self, slices: Slices) -> None:
        self._slices, self._version = await slices.list(self._patience.answer)
        self.listed = True
        self._listed_at = self._fresh_at = time.monotonic()
        self._tried.set()
        self._told()

    def _recovered(self) -> None:
        if self.failure is not None:
            log.info("Service %s: its EndpointSlices are followed again", self.service)
            self.failure = None
            self._told()

    def _take(self, kind: str, found: Slice) -> None:
        self._version = str(found["metadata"]["resourceVersion"])
        self._fresh_at = time.monotonic()
        if kind == "BOOKMARK":
            return
        name = found["metadata"]["name"]
        if kind == "DELETED":
            self._slices.pop(name, None)
        else:
            self._slices[name] = found
        self._told()

    def _failed(self, failure: ClusterUnavailable) -> None:
        before = self.failure
        self.failure = failure
        self._tried.set()
        if before is None or before.message != failure.message:
            held = (
                "what is known of it holds for a while" if self.listed else "DNS is asked instead"
            )
            log.warning("Service %s: %s; %s", self.service, failure.message, held)
        self._told()
