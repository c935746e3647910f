"""Which requests are taken: decided at once, before they cost anything."""

from __future__ import annotations

import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from slipstream.core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidParameter,
    Overloaded,
)
from slipstream.core.prefix import salted
from slipstream.engine.checkpoint import LoadedModel
from verifier_service.drain import Drain
from verifier_service.generation import Generation, GenerationRequest

# A tenant may have so many times as many requests waiting as there is room for more: one that
# floods takes three quarters of the queue, and others find room whenever they come (dynamic
# thresholds, Choudhury and Hahne 1998).
_SHARE = 3
# Seconds after which to try again: before anything was measured, and the most and least that are
# ever said.
_UNKNOWN_RETRY, _LEAST_RETRY, _MOST_RETRY = 1.0, 0.5, 600.0
# What a request may be refused for: too many wait, too long, or longer than its deadline.
BOUNDS = ("queue", "wait", "deadline")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait.

    Attributes:
        requests: most that wait for a place.
        seconds: longest expected wait with which a request is taken; a request that has waited
            longer all the same is given up.
    """

    requests: int = 1024
    seconds: float = 60.0


class Admission:
    """Takes or refuses requests, on any thread, and keeps account of those that have not started.

    A refusal looks at numbers alone, never at tokens, and waits for no step.

    Args:
        room: most tokens of a sequence.
        clock: seconds; the engine's.

    Attributes:
        drain: tells how fast what waits is worked off.
        places: how many requests could start at once. Set by the engine's thread.
        refused: requests, by the bound that they met.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        room: int,
        bounds: Bounds,
        places: int,
        clock: Callable[[], float],
    ) -> None:
        self.drain = Drain(clock)
        self.places = places
        self.refused: Counter[str] = Counter(dict.fromkeys(BOUNDS, 0))
        self._loaded = loaded
        self._room = room
        self._bounds = bounds
        self._clock = clock
        self._lock = threading.Lock()
        # Of those that were taken and have not started, by priority and tenant.
        self._count: Counter[tuple[int, str]] = Counter()
        self._work: defaultdict[tuple[int, str], float] = defaultdict(float)

    def admit(self, number: int, request: GenerationRequest) -> Generation:
        """The generation of a request, which from now on counts as waiting.

        Raises:
            InvalidParameter, ContextTooLong: it can never be served.
            DeadlineExceeded: its deadline has passed already.
            Overloaded: too much waits already; `retry_after` says when to come back.
        """
        self._check_length(request)
        work = self.drain.work(len(request.prompt), request.stop.max_tokens)
        key = (request.priority, request.tenant)
        with self._lock:
            self._check_load(request)
            self._count[key] += 1
            self._work[key] += work
        try:
            generation = self._make(number, request)
        except Exception:
            self._forget(key, work)
            raise
        generation.work = work
        return generation

    def left(self, generation: Generation) -> None:
        """It has its first place, or ended without."""
        request = generation.request
        self._forget((request.priority, request.tenant), generation.work)

    def expected_wait(self, tenant: str = "", priority: int = 0) -> float:
        """Seconds until a request that came now would start; 0 where that is not known."""
        with self._lock:
            return self._expected_wait(tenant, priority)

    # ---- inside ----------------------------------------------------------------------------

    def _check_length(self, request: GenerationRequest) -> None:
        if not request.prompt:
            raise InvalidParameter("the prompt is empty; it needs a token or more", param="prompt")
        if len(request.prompt) + request.stop.max_tokens > self._room:
            whole = self._room == self._loaded.context_length
            bound = "context window" if whole else "room in the KV pool"
            raise ContextTooLong(
                f"the {bound} is {self._room} tokens; the prompt has {len(request.prompt)} and "
                f"max_tokens asks for {request.stop.max_tokens} more",
                param="max_tokens",
            )
        seconds = request.deadline_seconds
        if seconds is not None and not math.isfinite(seconds):
            raise InvalidParameter(f"a deadline in {seconds} seconds", param="deadline_seconds")
        if seconds is not None and seconds <= 0.0:
            raise DeadlineExceeded("the deadline had passed when the request arrived")

    def _check_load(self, request: GenerationRequest) -> None:
        waiting = self._waiting(self._count.total())
        own = self._waiting(
            sum(n for (_, tenant), n in self._count.items() if tenant == request.tenant)
        )
        expected = self._expected_wait(request.tenant, request.priority)
        room = self._bounds.requests - waiting
        if room <= 0 or own >= _SHARE * room:
            self._refuse(
                "queue", f"{waiting} requests wait already, {own} of this tenant", expected
            )
        if expected > self._bounds.seconds:
            self._refuse(
                "wait",
                f"a request would wait for about {expected:.1f} s, and at most "
                f"{self._bounds.seconds:g} s are allowed",
                expected - self._bounds.seconds,
            )
        seconds = request.deadline_seconds
        if seconds is not None and expected > seconds:
            self._refuse(
                "deadline",
                f"the request would wait for about {expected:.1f} s, and its deadline is in "
                f"{seconds:g} s",
                expected - seconds,
            )

    def _refuse(self, bound: str, why: str, seconds: float) -> NoReturn:
        self.refused[bound] += 1
        raise Overloaded(f"{why}; try again later", retry_after=retry_after(seconds))

    def _waiting(self, count: int) -> int:
        """Of `count` that have not started, those that will not do so in the next step."""
        return max(0, count - self.places)

    def _expected_wait(self, tenant: str, priority: int) -> float:
        """Of what waits before a newcomer; its own work is no wait, however much it is."""
        rate = self.drain.rate
        if not rate or not self._waiting(self._count.total() + 1):
            return 0.0
        before = sum(w for (p, _), w in self._work.items() if p < priority)
        own = self._work.get((priority, tenant), 0.0)
        for (p, other), work in self._work.items():
            if p == priority and other != tenant:
                # Tenants are served in turn: until its turn has come, each of the others gets as
                # much as this one has waiting, and one request more.
                before += min(work, own + work / self._count[p, other])
        return (before + own) / rate

    def _forget(self, key: tuple[int, str], work: float) -> None:
        with self._lock:
            self._count[key] -= 1
            self._work[key] -= work
            if not self._count[key]:
                del self._count[key], self._work[key]

    def _make(self, number: int, request: GenerationRequest) -> Generation:
        vocab = self._loaded.config.vocab_size
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocab:
            beyond = next(token for token in request.prompt if not 0 <= token < vocab)
            raise InvalidParameter(
                f"the prompt holds token id {beyond}; the vocabulary has {vocab} tokens",
                param="prompt",
            )
        request.params.check_vocabulary(vocab)
        ends = request.stop.stop_token_ids
        if not request.stop.ignore_eos:
            ends = ends | self._loaded.eos_token_ids
        return Generation(
            number,
            request,
            salted(self._loaded.fingerprint, request.cache_salt),
            ends,
            len(request.prompt) + request.stop.max_tokens,
            self._clock(),
        )


def retry_after(seconds: float) -> float:
    """When to try again, where the wait is expected to take so long; 0: that is not known."""
    return min(max(seconds or _UNKNOWN_RETRY, _LEAST_RETRY), _MOST_RETRY)
