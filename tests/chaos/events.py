"""Names of events: what they say has come must only ever grow."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLACE = re.compile(r"(\d+)(\.?)\Z")
_END = "end"


class EventOrder:
    """Checks the ids of one generation's events, over all connections on which they come."""

    def __init__(self) -> None:
        self._request = ""
        self._places: tuple[tuple[int, bool], ...] = ()
        # Of each continuation, how much had come with its last text.
        self._carried: dict[int, int] = {}
        self.ended = False

    def take(self, event: str, carrying: Sequence[int]) -> str:
        """What is wrong with an id; empty where nothing is.

        Args:
            carrying: indices of the continuations that the event has text or tokens of.
        """
        request, _, cursor = event.rpartition("/")
        if not request or (self._request and request != self._request):
            return f"event {event!r} is not of request {self._request!r}"
        self._request = request
        if self.ended:
            return f"event {event!r} comes after the end"
        if cursor == _END:
            self.ended = True
            return f"event {event!r} carries tokens" if carrying else ""
        places = _places(cursor)
        if places is None:
            return f"event {event!r} has no cursor"
        before, self._places = self._places, places
        if len(before) > len(places) or any(a > b for a, b in zip(before, places, strict=False)):
            return f"event {event!r} goes back behind {before}"
        for index in carrying:
            if index >= len(places):
                return f"event {event!r} does not count continuation {index}"
            count, ended = places[index]
            # What was held back in case a stop string would come is told with the end.
            ends_now = ended and not (index < len(before) and before[index][1])
            if count < self._carried.get(index, 0) + (not ends_now):
                return f"event {event!r}: continuation {index} had come to {count} already"
            self._carried[index] = count
        return ""


def _places(cursor: str) -> tuple[tuple[int, bool], ...] | None:
    matches = [_PLACE.match(part) for part in cursor.split(",")]
    if not all(matches):
        return None
    return tuple((int(m[1]), bool(m[2])) for m in matches if m)
