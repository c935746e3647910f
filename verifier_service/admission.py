"""Which requests are taken: decided at once, before they cost anything."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable
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
from verifier_service.backlog import Backlog, Unfinished, key_of
from verifier_service.drain import Drain
from verifier_service.generation import Generation, GenerationRequest

# A tenant may have so many times as many requests waiting as there is room for more: one that
# floods takes three quarters of the queue, and others find room whenever they come (dynamic
# thresholds, Choudhury and Hahne 1998).
_SHARE = 3
# Seconds after which to try again: before anything was measured, and the most and least that are
# ever said.
_UNKNOWN_RETRY, _LEAST_RETRY, _MOST_RETRY = 1.0, 0.5, 600.0
# Over so many seconds those who are refused are spread, beyond the time when there should be room.
_SPREAD_SECONDS = 10.0
# All priorities together may have so many times as many waiting as are allowed before one: whoever
# matters more finds room, and the queue is bounded whatever numbers clients make up.
_IN_ALL = 2
# A queue that has not been empty for as long as one may wait is no burst but lasting overload: what
# waits in it serves nobody, and all wait as long. So it is kept as short as this part (Maurer,
# "Fail at scale", ACM Queue 13(8), 2015). The engine needs no more to have enough to do.
_STANDING = 0.4
# What a request may be refused for: too many wait, too long, or longer than its deadline.
BOUNDS = ("queue", "wait", "deadline")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What may wait.

    Attributes:
        requests: most that wait for a place.
        seconds: longest expected wait for a first token with which a request is taken; a request
            that has waited much longer for its place all the same is given up.
    """

    requests: int = 1024
    seconds: float = 10.0


class Admission:
    """Takes or refuses requests, on any thread, and keeps account of those that have not started.

    A refusal looks at numbers alone, never at tokens, and waits for no step. `planned`, `stepped`
    and `idle` are for the engine's thread.

    Args:
        room: most tokens of a sequence.
        places: how many requests could start at once.
        clock: seconds; the engine's.

    Attributes:
        drain: tells how fast what waits is worked off.
        backlog: what waits.
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
        self.backlog = Backlog(self.drain, places)
        self.refused: Counter[str] = Counter(dict.fromkeys(BOUNDS, 0))
        self._loaded = loaded
        self._room = room
        self._bounds = bounds
        self._clock = clock
        self._lock = threading.Lock()
        # Since when more has been there than a step takes.
        self._behind_since = math.inf
        # Up to when those of a tenant that were refused are promised that they will be taken.
        self._promised: dict[str, float] = {}

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidParameter, ContextTooLong or DeadlineExceeded where a request could not be
        served by anyone."""
        self._check_length(request)
        self._check_tokens(request)

    def admit(self, number: int, request: GenerationRequest) -> Generation:
        """The generation of a request, which from now on counts as waiting.

        Raises:
            InvalidParameter, ContextTooLong: it can never be served.
            DeadlineExceeded: its deadline has passed already.
            Overloaded: too much waits already; `retry_after` says when to come back.
        """
        self._check_length(request)
        prompt = self.drain.new(request.given)
        left = request.stop.max_tokens - len(request.committed)
        work = self.drain.work(request.given, left)
        key = (request.priority, request.tenant)
        with self._lock:
            self._check_load(request, self.backlog.takes(prompt, work))
            self.backlog.add(key, prompt, work)
        try:
            generation = self._make(number, request)
        except Exception:
            with self._lock:
                self.backlog.remove(key, prompt, work)
            raise
        generation.new_prompt, generation.work = prompt, work
        return generation

    def left(self, generation: Generation) -> None:
        """It has its first place, or ended without."""
        with self._lock:
            self.backlog.remove(key_of(generation), generation.new_prompt, generation.work)

    def expected_wait(self, tenant: str = "", priority: int = 0) -> float:
        """Seconds until the prompt of a request that came now would be begun; 0 where that is not
        known."""
        with self._lock:
            return self.backlog.seconds(tenant, priority)

    def planned(self, places: int, prompts: Iterable[Generation]) -> None:
        """A step begins; prompts that are not computed yet, in their order."""
        self.backlog.begun = Unfinished.of(prompts)
        self.backlog.places = places

    def stepped(self, prompt: int, output: int) -> None:
        """It is over, and so many tokens of prompts and answers were served."""
        backlog = self.backlog
        behind = backlog.begun.tokens > prompt
        self.drain.stepped(prompt, output, full=not backlog.places, behind=behind)
        with self._lock:
            waiting = backlog.waiting()
        if not behind and not waiting:
            self._behind_since = math.inf
        elif self._behind_since == math.inf:
            self._behind_since = self._clock()

    def idle(self) -> None:
        """Nothing runs or waits."""
        self._behind_since = math.inf
        self.drain.idle()

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

    def _check_load(self, request: GenerationRequest, takes: float) -> None:
        """`takes`: seconds that it would keep others waiting."""
        backlog, bounds = self.backlog, self._bounds
        expected = backlog.seconds(request.tenant, request.priority)
        before, own = (
            backlog.waiting(request.priority, tenant) for tenant in (None, request.tenant)
        )
        room = bounds.requests - before
        # Whoever resumes was let in before: turned away now, what it has had so far would be lost.
        resumed = request.resumed
        full = room <= 0 or own >= _SHARE * room or backlog.waiting() >= _IN_ALL * bounds.requests
        if full and not resumed:
            why = f"{before} requests wait already, {own} of this tenant"
            self._refuse("queue", why, expected, request.tenant, takes)
        most = self._longest_wait()
        late = expected - backlog.residual(request.priority) - most
        if late > 0.0 and not resumed:
            why = f"a request would wait for about {expected:.1f} s, and {most:g} s are allowed"
            self._refuse("wait", why, late, request.tenant, takes)
        seconds = request.deadline_seconds
        if seconds is not None and expected > seconds:
            why = (
                f"the request would wait for about {expected:.1f} s, its deadline is in {seconds:g}"
            )
            self._refuse("deadline", why, expected - seconds, request.tenant, takes)

    def _longest_wait(self) -> float:
        """Seconds: of a queue that does not end a part only, or all would wait as long for ever."""
        lasted = self._clock() - self._behind_since
        return self._bounds.seconds * (_STANDING if lasted > self._bounds.seconds else 1.0)

    def _refuse(self, bound: str, why: str, seconds: float, tenant: str, takes: float) -> NoReturn:
        """`seconds` from now there should be room, but for one only: each that is refused is told
        to come when those of its tenant before it have been let in, and from the beginning where
        they are so many that nobody can tell."""
        self.refused[bound] += 1
        now = self._clock()
        self._promised = {name: at for name, at in self._promised.items() if at > now}
        soonest = now + retry_after(seconds)
        at = max(soonest, self._promised.get(tenant, -math.inf) + takes)
        self._promised[tenant] = at if at <= soonest + _SPREAD_SECONDS else soonest
        raise Overloaded(f"{why}; try again later", retry_after=self._promised[tenant] - now)

    def _check_tokens(self, request: GenerationRequest) -> None:
        vocab = self._loaded.config.vocab_size
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocab:
            beyond = next(token for token in request.prompt if not 0 <= token < vocab)
            raise InvalidParameter(
                f"the prompt holds token id {beyond}; the vocabulary has {vocab} tokens",
                param="prompt",
            )
        request.params.check_vocabulary(vocab)
        _check_committed(request, self._ends(request), vocab)

    def _ends(self, request: GenerationRequest) -> frozenset[int]:
        """Tokens that end it."""
        ends = request.stop.stop_token_ids
        return ends if request.stop.ignore_eos else ends | self._loaded.eos_token_ids

    def _make(self, number: int, request: GenerationRequest) -> Generation:
        self._check_tokens(request)
        return Generation(
            number,
            request,
            salted(self._loaded.fingerprint, request.cache_salt),
            self._ends(request),
            len(request.prompt) + request.stop.max_tokens,
            self._clock(),
        )


def _check_committed(request: GenerationRequest, ends: frozenset[int], vocab: int) -> None:
    """Raises InvalidParameter where what was committed cannot be the beginning of an answer."""
    for token in request.committed:
        why = ""
        if not 0 <= token < vocab:
            why = f"the vocabulary has {vocab} tokens"
        elif token in ends:
            why = "that token ends the generation"
        if why:
            raise InvalidParameter(
                f"committed_token_ids holds token id {token}; {why}", param="committed_token_ids"
            )


def retry_after(seconds: float) -> float:
    """When to try again, where the wait is expected to take so long; 0: that is not known."""
    return min(max(seconds or _UNKNOWN_RETRY, _LEAST_RETRY), _MOST_RETRY)
