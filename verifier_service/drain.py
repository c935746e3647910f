"""How fast the engine works off what waits, and how long that leaves a newcomer to wait."""

from __future__ import annotations

import math
from collections.abc import Callable

from verifier_service.estimates import faded
from verifier_service.fairness import service

# What is measured fades within so many seconds; less than the second is no measurement yet.
_FADES_SECONDS, _LEAST_SECONDS = 10.0, 0.5
# Output tokens of a request before any has ended.
_FIRST_OUTPUT = 128.0


class Drain:
    """Weighted tokens per second, and output tokens per request, by exponential averages.

    Written by the engine's thread, read by anyone.

    Args:
        clock: seconds.

    Attributes:
        output: mean output tokens of the requests that ended.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.output = 0.0
        self._clock = clock
        self._since = clock()
        self._tokens = self._seconds = 0.0

    @property
    def rate(self) -> float:
        """Weighted tokens per second; 0 where nobody has waited long enough to tell."""
        return self._tokens / self._seconds if self._seconds >= _LEAST_SECONDS else 0.0

    def stepped(self, prompt: int, output: int, waiting: bool) -> None:
        """Since the last call so many tokens were served.

        Counts while somebody waits: an engine that could take more does not show how fast it is.
        """
        now = self._clock()
        seconds, self._since = now - self._since, now
        if waiting:
            kept = math.exp(-seconds / _FADES_SECONDS)
            self._tokens = kept * self._tokens + service(prompt, output)
            self._seconds = kept * self._seconds + seconds

    def idle(self) -> None:
        """Nothing is running: the time until the next step says nothing."""
        self._since = self._clock()

    def ended(self, output: int) -> None:
        """A request ended with so many tokens."""
        self.output = faded(self.output, float(output))

    def work(self, prompt: int, max_tokens: int) -> float:
        """Weighted tokens to expect of a request: most end before their `max_tokens`."""
        return service(prompt, min(float(max_tokens), self.output or _FIRST_OUTPUT))
