"""One generation on the verifier: a sequence, what ends it, and the drafts that wait for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from enum import Enum

from slipstream.core.draft import Commit, Open, Proposal
from slipstream.core.errors import InvalidParameter, SlipstreamError
from slipstream.core.ngram import NgramProposer
from slipstream.core.params import SamplingParams, StopConditions
from slipstream.core.prefix import PrefixChain
from slipstream.core.runs import agreement
from slipstream.engine.sequence import Sequence
from verifier_service.estimates import Acceptance
from verifier_service.offers import Offers
from verifier_service.probes import Probes
from verifier_service.times import Times

# A gateway's names and salts fit, with what it adds to its clients'.
_MOST_OF_A_NAME, _MOST_OF_A_SALT = 256, 512
_MOST_SECONDS = 24 * 3600.0
# Most drafts that wait; the widest window. A drafter that floods is not worth the memory.
MOST_PENDING = 64


class Finish(Enum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class CommittedToken:
    """A decided token; log probabilities only where asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class SpeculationCounts:
    """What speculation did; histogram[i] counts the drafted steps that accepted i tokens.

    Attributes:
        guessed, accepted_guesses: of the drafts, those that were n-gram guesses.
        guess_steps: drafted steps that carried guesses only.
    """

    steps: int = 0
    spec_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    guessed: int = 0
    accepted_guesses: int = 0
    guess_steps: int = 0
    histogram: list[int] = field(default_factory=list)

    def record(self, drafted: int, accepted: int, by_drafter: int) -> None:
        """A step with `drafted` drafts, of which the first `by_drafter` were the drafter's."""
        self.steps += 1
        if drafted:
            self.guessed += drafted - by_drafter
            self.accepted_guesses += max(0, accepted - by_drafter)
            self.guess_steps += by_drafter == 0
            self.spec_steps += 1
            self.drafted += drafted
            self.accepted += accepted
            self.histogram.extend([0] * (accepted + 1 - len(self.histogram)))
            self.histogram[accepted] += 1

    def copy(self) -> SpeculationCounts:
        """As they are now: other threads read what the engine goes on counting."""
        counts = copy(self)
        counts.histogram = self.histogram.copy()
        return counts


@dataclass(frozen=True, slots=True)
class Progress:
    """What one step did for one generation. The last one has `finish` or `error`."""

    tokens: tuple[CommittedToken, ...] = ()
    finish: Finish | None = None
    error: SlipstreamError | None = None
    counts: SpeculationCounts | None = None
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request. `listener` is called on the engine's thread and must not block.

    Attributes:
        tenant: on whose behalf; tenants share the engine fairly.
        cache_salt: keys and values are shared among requests of one salt only.
        priority: lower ones go first.
        deadline_seconds: from its arrival, within which it must have ended; None: never.
        committed: tokens of its output that were decided before, here or elsewhere.
        resumed: it was taken before, so it is not refused for load.
        kv_holder: host:port of who may have keys and values of it; empty: nobody is known.

    Raises:
        InvalidParameter: names the field that is too long, too far away, or not fit for a log.
    """

    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    stop: StopConditions
    speculative: bool
    logprobs: int | None
    listener: Callable[[Progress], None]
    tenant: str = ""
    cache_salt: str = ""
    priority: int = 0
    deadline_seconds: float | None = None
    committed: tuple[int, ...] = ()
    resumed: bool = False
    kv_holder: str = ""
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        for name, value, most in (
            ("request_id", self.request_id, _MOST_OF_A_NAME),
            ("tenant", self.tenant, _MOST_OF_A_NAME),
            ("cache_salt", self.cache_salt, _MOST_OF_A_SALT),
            ("kv_holder", self.kv_holder, _MOST_OF_A_NAME),
        ):
            if len(value) > most:
                raise InvalidParameter(
                    f"{name} may have at most {most} characters, got {len(value)}", param=name
                )
        for name, value in (("request_id", self.request_id), ("tenant", self.tenant)):
            if not value.isprintable():
                raise InvalidParameter(
                    f"{name} stands in logs, and {value[:40]!r} cannot", param=name
                )
        seconds = self.deadline_seconds
        if seconds is not None and seconds > _MOST_SECONDS:
            raise InvalidParameter(
                f"a deadline may be at most {_MOST_SECONDS:g} seconds away, not {seconds:g}",
                param="deadline_seconds",
            )
        if self.committed and len(self.committed) >= self.stop.max_tokens:
            raise InvalidParameter(
                f"committed_token_ids holds {len(self.committed)} tokens, and max_tokens is"
                f" {self.stop.max_tokens}: nothing is left to generate",
                param="committed_token_ids",
            )

    @property
    def given(self) -> int:
        """Tokens that it comes with: prompt and what was committed before."""
        return len(self.prompt) + len(self.committed)


class Generation:
    """A request being served. Only the engine's thread touches it.

    Args:
        number: names the sequence to the drafter; later ones have higher numbers.
        end_tokens: tokens that end this generation.
        max_length: most tokens of the sequence, prompt included.
        arrived: when it was taken, by the engine's clock.

    Attributes:
        deadline: when it must have ended.
        new_prompt, work: tokens of its prompt to compute, and weighted tokens in all, that were
            expected of it when it was taken.
        started: whether it ever had a place; one without a table then was preempted.
        cached: tokens of the prompt whose keys and values were there when it first started, or
            were computed for others before it came to them.
        opened: a drafter drafts for it, `window` tokens ahead.
        untold: committed tokens that it has not been told of.
        paused: that drafter will send no more before the next commit; `stalled`, whether it was so
            at any time of the last step.
        warm: drafts have come since it was opened; `warm_before`, already when the last step
            began; `cold_steps`, steps without. `late`: a wait for the first of them was in vain.
        acceptance: how good its drafts have been; `agreed`, whether those that were pending at the
            last step's end agreed with what it committed.
        compared, agreed_drafts: of those, how many the step decided on, verified or not, and how
            many of the first ones were right.
        wanted: drafts that it should have in a step; `probing`, whether some are tried although
            none are worth it, as `probes` says from time to time.
        offers: when it is offered to a drafter that refused it.
        ngram: what its text repeats.
        drafted: how many drafts of the step under way are the drafter's; the others are guesses.
        arrived_waiting, arrived_stepping, arrived_at: drafts that came since the last step began,
            while the engine waited and while it computed, and when the last of the former came.
        turn: the lower, the longer it has had no rows; no two that had some have the same.
    """

    def __init__(
        self,
        number: int,
        request: GenerationRequest,
        salt: str,
        end_tokens: frozenset[int],
        max_length: int,
        arrived: float = 0.0,
    ) -> None:
        self.number = number
        self.request = request
        self.arrived = arrived
        self.deadline = arrived + (
            math.inf if request.deadline_seconds is None else request.deadline_seconds
        )
        self.new_prompt = self.work = 0.0
        self.started = False
        self.cached = 0
        tokens = (*request.prompt, *request.committed)
        self.sequence = Sequence(tokens, len(request.prompt), request.params, salt)
        self.max_length = max_length
        self.finish: Finish | None = None
        self.counts = SpeculationCounts()
        self.opened = False
        self.window = self.untold = 0
        self.paused = self.stalled = False
        self.warm = self.warm_before = self.late = False
        self.agreed = True
        self.compared = self.agreed_drafts = 0
        self.wanted = 0
        self.probes = Probes()
        self.probing = False
        self.offers = Offers()
        self.acceptance = Acceptance()
        self.cold_steps = 0
        self.ngram = NgramProposer()
        self.drafted = 0
        self.arrived_waiting = self.arrived_stepping = 0
        self.arrived_at = 0.0
        self.turn = 0
        self.stale_drafts = 0
        self._end_tokens = end_tokens
        self._salt = salt
        self._pending: list[int] = []
        # Names of the committed sequence extended by the pending drafts.
        self._pending_chain: PrefixChain | None = None

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    @property
    def num_new(self) -> int:
        """Tokens that were decided for it here."""
        return len(self.sequence) - self.request.given

    @property
    def rank(self) -> tuple[int, int]:
        """The lower, the more it matters that it goes on."""
        return self.request.priority, self.number

    @property
    def room(self) -> int:
        """Most drafts that could be accepted: the token at max_length - 1 is the rule's own, and
        drafts need room in the pool."""
        table = self.sequence.table
        most = self.max_length - 1 if table is None else min(self.max_length - 1, table.capacity)
        return max(0, most - len(self.sequence))

    @property
    def lacks_drafts(self) -> bool:
        return len(self._pending) < min(self.wanted, self.room)

    def propose(self, proposal: Proposal) -> bool:
        """Takes the tokens of a proposal that continues what is committed and pending.

        A proposal for another prefix is dropped: late, duplicated and reordered ones do no harm.

        Returns:
            Whether it continued what is here; else it was dropped.
        """
        tokens, length = proposal.tokens, len(self.sequence)
        start = proposal.prefix.length
        if start < length:
            # It was sent before the last commit was heard; what was committed since must agree.
            overlap = self.sequence.tokens[start:length]
            known = tuple(overlap[: len(tokens)])
            if not self.sequence.chain.names(proposal.prefix) or tokens[: len(known)] != known:
                self.stale_drafts += len(tokens)
                return False
            tokens = tokens[len(known) :]
            if self._pending or not tokens:
                return True
        elif start == length and self.sequence.chain.names(proposal.prefix):
            self._pending.clear()
        elif not self._continues_pending(proposal):
            self.stale_drafts += len(tokens)
            return False
        else:
            del self._pending[start - length :]
        self._pending.extend(tokens[: max(0, MOST_PENDING - len(self._pending))])
        self._pending_chain = None
        return True

    def _continues_pending(self, proposal: Proposal) -> bool:
        length = len(self.sequence)
        if not length < proposal.prefix.length <= length + len(self._pending):
            return False
        chain = self._pending_chain
        if chain is None:
            chain = self.sequence.chain.extended(self._pending)
            self._pending_chain = chain
        return chain.names(proposal.prefix)

    def drafts(self, most: int) -> tuple[int, ...]:
        """The drafts for the next step: at most `most`, and none that could not be accepted."""
        return tuple(self._pending[: min(most, self.room)])

    def append(self, token: int) -> None:
        """Commits a token and notices whether it is the last."""
        self.sequence.append(token)
        if token in self._end_tokens:
            self.finish = Finish.STOP
        elif len(self.sequence) >= self.max_length:
            self.finish = Finish.LENGTH

    def settle(self, committed: int) -> None:
        """After a step that committed `committed` tokens: keeps the drafts that still continue."""
        new = self.sequence.tokens[-committed:]
        self.compared = min(len(self._pending), committed)
        self.agreed_drafts = agreement(self._pending, new)
        self.agreed = self.agreed_drafts == self.compared
        self._pending = self._pending[committed:] if self.agreed else []
        self._pending_chain = None

    def open_command(self, window: int) -> Open:
        sequence = self.sequence
        return Open(
            self.number,
            tuple(sequence.tokens),
            sequence.num_prompt,
            sequence.params,
            window,
            self.max_length,
            self.request.cache_salt,
        )

    def commit_command(self, committed: int) -> Commit:
        before = len(self.sequence) - committed
        return Commit(
            self.number, self.sequence.chain.at(before), tuple(self.sequence.tokens[before:])
        )
