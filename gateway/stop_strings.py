"""Stop strings across token and chunk borders.

The rule, independent of how the text is cut: read character by character, the generation stops at
the first character that completes a stop string, and the text ends where that stop string began
(the longest one, where several end there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scan:
    """What one piece of text led to.

    Attributes:
        text: what may be shown now.
        held: what may yet turn out to be the beginning of a stop string; empty after a match.
        matched: whether a stop string is complete.
    """

    text: str
    held: str
    matched: bool


class StopStrings:
    """Looks for stop strings in one continuation's text.

    Args:
        stops: non-empty strings; may be none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> Scan:
        """Takes the next piece of text. Not to be called again after a match."""
        scan = self.peek(text)
        self._held = scan.held
        return scan

    def peek(self, text: str) -> Scan:
        """What `feed` would say, without taking the text."""
        if not self._stops:
            return Scan(text, "", False)
        buffer = self._held + text
        start = self._match(buffer)
        if start is not None:
            return Scan(buffer[:start], "", True)
        safe = len(buffer) - self._possible(buffer)
        return Scan(buffer[:safe], buffer[safe:], False)

    def flush(self) -> str:
        """What was held, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _match(self, buffer: str) -> int | None:
        """Where the stop string starts that is completed first."""
        found = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _possible(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that begins some stop string."""
        longest = 0
        for stop in self._stops:
            at = max(0, len(buffer) - len(stop) + 1)
            while (at := buffer.find(stop[0], at)) >= 0 and len(buffer) - at > longest:
                if stop.startswith(buffer[at:]):
                    longest = len(buffer) - at
                    break
                at += 1
        return longest
