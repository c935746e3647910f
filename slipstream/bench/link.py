"""A network between two processes of one machine: it takes its time, and carries so much a second.

Connections go through a proxy in this process. Bytes arrive in order, each a delay after it was
sent, and any number of them may be under way, as on a long cable; what the bandwidth does not carry
at once waits. `precise_loop` gives the timers that delays of a millisecond need.
"""

from __future__ import annotations

import asyncio
import selectors

from slipstream.bench.proxy import Lane, Passage, Proxy


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop with timers of microseconds; the usual one rounds up to milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class Link(Proxy):
    """Between a near and a far end. Use it as an async context manager, on one event loop.

    Attributes:
        round_trip: seconds to the other end and back; may be changed at any time.
        bytes_per_second: in each direction; None for as much as the machine can do.
        outward, homeward: what goes from the near to the far end, and back.
    """

    def __init__(self, round_trip: float = 0.0, bytes_per_second: float | None = None) -> None:
        super().__init__()
        self.round_trip = round_trip
        self.bytes_per_second = bytes_per_second
        self.outward = Lane()
        self.homeward = Lane()

    def passages(self, _number: int, *, from_far_end: bool) -> tuple[Passage, Passage]:
        outward, homeward = _Cable(self, self.outward), _Cable(self, self.homeward)
        return (homeward, outward) if from_far_end else (outward, homeward)


class _Cable(Passage):
    def __init__(self, link: Link, lane: Lane) -> None:
        self._link, self._lane = link, lane

    def take(self, piece: bytes, now: float) -> tuple[float, bytes]:
        link = self._link
        delay, rate = link.round_trip / 2, link.bytes_per_second
        return self._lane.arrival(len(piece), now, delay, rate), piece
