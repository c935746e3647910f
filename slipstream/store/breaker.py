"""A circuit breaker: whether a store is worth a call."""

from __future__ import annotations

import asyncio
import logging
import time

log = logging.getLogger(__name__)


class Breaker:
    """Opens after failures in a row, and is closed by whoever has found that the store works.

    It says so in the log, each time once. Not thread-safe: one event loop owns it.

    Args:
        failures: so many in a row open it.
        what: its subject in the log.

    Attributes:
        openings: how often it has opened. What began before the last time says nothing about now.
        in_a_row: failures since the last success.
        opened: set while it is open.
    """

    def __init__(self, failures: int, what: str) -> None:
        self.openings = 0
        self.in_a_row = 0
        self.opened = asyncio.Event()
        self._failures = failures
        self._what = what
        self._since = 0.0
        self._detail = ""

    @property
    def is_open(self) -> bool:
        return self.opened.is_set()

    @property
    def detail(self) -> str:
        """The last failure; empty while it is closed."""
        return self._detail if self.is_open else ""

    @property
    def seconds(self) -> float:
        """For how long it has been open; 0 while it is closed."""
        return time.monotonic() - self._since if self.is_open else 0.0

    def failed(self, since: int, detail: str) -> None:
        """A call failed that began when there had been `since` openings."""
        if since != self.openings:
            return
        self._detail = detail
        self.in_a_row += 1
        if self.in_a_row >= self._failures and not self.is_open:
            self.open(detail)

    def worked(self, since: int) -> None:
        """A call was answered. An open breaker takes no notice: what it says may be old."""
        if since == self.openings and not self.is_open:
            self.in_a_row = 0

    def open(self, detail: str) -> None:
        """Nothing happens where it is open already."""
        if self.is_open:
            return
        self._detail, self._since = detail, time.monotonic()
        self.openings += 1
        self.opened.set()
        log.warning("%s is unavailable and will be probed: %s", self._what, detail)

    def close(self) -> None:
        """Nothing happens where it is closed already, but that failures are counted anew."""
        self.in_a_row = 0
        if self.is_open:
            log.warning("%s is back after %.1f s", self._what, self.seconds)
            self.opened.clear()
