"""How fast the engine works off what waits: for a place, and for its prompt to be computed."""

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


class _Meter:
    """Tokens per second, by an exponential average over the time with enough to do."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def passed(self, tokens: float, seconds: float, *, busy: bool) -> None:
        """So many seconds have passed; what was done in them counts where there was more to do."""
        kept = math.exp(-seconds / (_FADES_SECONDS if busy else _FORGOTTEN_SECONDS))
        self._tokens = kept * self._tokens + tokens * busy
        self._seconds = kept * self._seconds + seconds * busy

    def rate(self, idle: float) -> float:
        """After so many idle seconds; 0 where too little was measured, or too long ago."""
        left = self._seconds * math.exp(-idle / _FORGOTTEN_SECONDS)
        return self._tokens / self._seconds if left >= _LEAST_SECONDS else 0.0


class Drain:
    """Two rates, and what requests come to on average.

    An engine that could take more does not show how fast it is, and one that lets nobody wait would
    never be measured again. So what counts is whether it lacks places, or time for prompts, not
    whether anybody waits at the door.

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
        self._service, self._prompts = _Meter(), _Meter()
        self._step_seconds = 0.0
        self._prompt = self._new = 0.0

    @property
    def rate(self) -> float:
        """Weighted tokens per second while no place is free; 0: not known."""
        return self._service.rate(self._idle_seconds)

    @property
    def prompt_rate(self) -> float:
        """Tokens of prompts per second while more of them have places than a step takes; 0: not
        known."""
        return self._prompts.rate(self._idle_seconds)

    def stepped(self, prompt: int, output: int, *, full: bool, behind: bool) -> None:
        """Since the last call so many tokens were served; `full`: no place was free, `behind`: the
        step left tokens of prompts over."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        if self._idle:
            self._idle = full = behind = False
        if full or behind:
            seconds = min(seconds, max(_STALL_SECONDS, _STALL_STEPS * self._step_seconds))
            self._step_seconds = faded(self._step_seconds, seconds)
        self._service.passed(service(prompt, output), seconds, busy=full)
        self._prompts.passed(prompt, seconds, busy=behind)

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

    def new(self, prompt: int) -> float:
        """Tokens to expect of a prompt that are not in the cache.

        Which they are only the engine's thread could say. So it is the part that recent prompts
        lacked there, and a guess for any single one.
        """
        return prompt * self._new / self._prompt if self._prompt else float(prompt)

    def work(self, prompt: int, max_tokens: int) -> float:
        """Weighted tokens to expect of a request: most end before their `max_tokens`, and find a
        part of their prompt in the cache."""
        return service(self.new(prompt), min(float(max_tokens), self.output or _FIRST_OUTPUT))

    @property
    def _idle_seconds(self) -> float:
        return self._clock() - self._since if self._idle else 0.0
