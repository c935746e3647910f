"""How fast the engine works off what waits, and how long that leaves a newcomer to wait."""

from __future__ import annotations

import math
from collections.abc import Callable

from verifier_service.estimates import faded
from verifier_service.fairness import service

# What is measured fades within so many seconds of measuring, and within so many of none: a rate
# that was low once must not decide for ever. Less than the second is no measurement yet.
_FADES_SECONDS, _FORGOTTEN_SECONDS, _LEAST_SECONDS = 10.0, 300.0, 0.5
# A step counts for at most so long, or for so many times as long as steps usually take: a process
# that was stopped for a minute is not slow.
_STALL_SECONDS, _STALL_STEPS = 1.0, 4.0
# Output tokens of a request before any has ended.
_FIRST_OUTPUT = 128.0


class Drain:
    """Weighted tokens per second, and tokens to compute per request, by exponential averages.

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
        self._idle = True
        self._tokens = self._seconds = self._step_seconds = 0.0
        self._prompt = self._new = 0.0

    @property
    def rate(self) -> float:
        """Weighted tokens per second; 0 where places were never, or long ago, taken long enough
        to tell."""
        tokens, seconds = self._tokens, self._seconds
        left = seconds
        if self._idle:
            left *= math.exp((self._since - self._clock()) / _FORGOTTEN_SECONDS)
        return tokens / seconds if left >= _LEAST_SECONDS else 0.0

    def stepped(self, prompt: int, output: int, full: bool) -> None:
        """Since the last call so many tokens were served.

        Counts while no place is free, whether or not anybody waits: an engine that could take more
        does not show how fast it is, and one that lets nobody wait would never be measured again.
        """
        now = self._clock()
        seconds, self._since = now - self._since, now
        if not full or self._idle:
            self._idle = False
            self._fade(seconds / _FORGOTTEN_SECONDS)
            return
        seconds = min(seconds, max(_STALL_SECONDS, _STALL_STEPS * self._step_seconds))
        self._step_seconds = faded(self._step_seconds, seconds)
        self._fade(seconds / _FADES_SECONDS)
        self._tokens += service(prompt, output)
        self._seconds += seconds

    def idle(self) -> None:
        """Nothing is running: the time until the next step is over says nothing."""
        if not self._idle:
            self._since = self._clock()
            self._idle = True

    def started(self, prompt: int, cached: int) -> None:
        """A request got its place; the cache had so many tokens of its prompt."""
        self._prompt = faded(self._prompt, float(prompt))
        self._new = faded(self._new, float(prompt - cached))

    def ended(self, output: int) -> None:
        """A request ended with so many tokens."""
        self.output = faded(self.output, float(output))

    def work(self, prompt: int, max_tokens: int) -> float:
        """Weighted tokens to expect of a request: most end before their `max_tokens`, and find a
        part of their prompt in the cache.

        What the cache has of this prompt only the engine's thread could say. So it is the part
        that recent prompts found there, and a guess for any single one.
        """
        new = self._new / self._prompt if self._prompt else 1.0
        return service(new * prompt, min(float(max_tokens), self.output or _FIRST_OUTPUT))

    def _fade(self, share: float) -> None:
        kept = math.exp(-share)
        self._tokens *= kept
        self._seconds *= kept
