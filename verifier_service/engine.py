"""The verifier's engine: the loop that decides every token."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from slipstream.core.draft import Proposal, Refusal
from slipstream.core.errors import (
    ContextTooLong,
    InternalError,
    InvalidParameter,
    Overloaded,
    SlipstreamError,
)
from slipstream.core.sampling import log_probabilities
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.loop import EngineLoop
from slipstream.engine.runner import ModelRunner
from verifier_service.generation import (
    CommittedToken,
    Finish,
    Generation,
    GenerationRequest,
    Progress,
)
from verifier_service.kv_holder import KvHolder
from verifier_service.placement import Drafter
from verifier_service.plan import Limits, Work, next_turn, plan_step
from verifier_service.speculation import Speculation

log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineCounters:
    """Totals since the start. Written by the engine's thread, read by anyone."""

    steps: int = 0
    step_seconds: float = 0.0
    plain_steps: int = 0
    plain_step_seconds: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    # Of those two, n-gram guesses; the others came from the drafter.
    guess_tokens: int = 0
    accepted_guess_tokens: int = 0
    stale_draft_tokens: int = 0
    # By position in the drafts of a step: verified there, and accepted.
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)

    def count_drafts(self, drafted: int, accepted: int, by_drafter: int) -> None:
        """Of `drafted` drafts of a sequence, the first `by_drafter` of them the drafter's."""
        self.draft_tokens += drafted
        self.accepted_tokens += accepted
        self.guess_tokens += drafted - by_drafter
        self.accepted_guess_tokens += max(0, accepted - by_drafter)
        for counts, reached in (
            (self.drafted_by_position, drafted),
            (self.accepted_by_position, accepted),
        ):
            counts.extend([0] * (drafted - len(counts)))
            for position in range(reached):
                counts[position] += 1


class VerifierEngine(EngineLoop):
    """Serves generations with one model, step by step, on a thread of its own.

    Submit, cancel and deliver from any thread; they only fill the inbox, which the engine
    empties once a step. What it decides goes out through each request's listener, and to the
    drafter through `speculation`, both called on the engine's thread.

    Args:
        speculation: keeps the drafter informed and decides about drafts.
        kv: leases on keys and values; touched on the engine's thread only.
        max_running: most sequences in a step; `max_waiting`: most that queue for a place.
    """

    def __init__(
        self,
        runner: ModelRunner,
        speculation: Speculation,
        *,
        limits: Limits,
        max_running: int = 128,
        max_waiting: int = 1024,
        kv: KvHolder | None = None,
    ) -> None:
        super().__init__()
        self.runner = runner
        self.kv = kv or KvHolder(runner)
        self.counters = EngineCounters()
        self.limits = limits
        self.speculation = speculation
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._waiting: deque[Generation] = deque()
        self._running: deque[Generation] = deque()
        self._by_number: dict[int, Generation] = {}
        # next() on it is atomic, so two threads that submit never share a number.
        self._numbers = itertools.count(1)
        self._prefilled_last = False

    # ---- from any thread -------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence: the model's context window, or what the KV pool can hold."""
        runner = self.runner
        return min(runner.loaded.context_length, runner.pool.num_blocks * BLOCK_TOKENS)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: GenerationRequest) -> Callable[[], None]:
        """Queues a request; calling the result cancels it within a step.

        Raises:
            InvalidParameter, ContextTooLong: it can never be served.
            Overloaded: too many are waiting.
        """
        generation = self._admit(request)
        self.post(lambda: self._waiting.append(generation))
        return lambda: self.post(lambda: self._cancel(generation))

    def deliver(
        self,
        connection: int,
        proposals: list[Proposal],
        refusals: list[Refusal],
        draft_seconds: float = 0.0,
    ) -> None:
        """Drafts arrived from a drafter connection, which takes `draft_seconds` for one."""
        at, vocab = time.perf_counter(), self.runner.loaded.config.vocab_size
        take, known = self.speculation.take, self._by_number
        self.post(lambda: take(connection, proposals, refusals, known, vocab, at, draft_seconds))

    def drafter_up(self, connection: int, drafter: Drafter) -> None:
        """A drafter is there: live sequences are opened on it."""
        self.post(lambda: self.speculation.connect(connection, drafter, self._running))

    def drafter_down(self, connection: int) -> None:
        """A drafter is gone: decoding goes on without."""
        self.post(lambda: self.speculation.disconnect(connection, self._running))

    def _admit(self, request: GenerationRequest) -> Generation:
        loaded = self.runner.loaded
        vocab, context = loaded.config.vocab_size, self.max_length
        if not request.prompt:
            raise InvalidParameter(
                "the prompt is empty; it needs at least one token", param="prompt"
            )
        beyond = next((t for t in request.prompt if not 0 <= t < vocab), None)
        if beyond is not None:
            raise InvalidParameter(
                f"the prompt holds token id {beyond}; the vocabulary has {vocab} tokens",
                param="prompt",
            )
        request.params.check_vocabulary(vocab)
        max_length = len(request.prompt) + request.stop.max_tokens
        if max_length > context:
            bound = "context window" if context == loaded.context_length else "room in the KV pool"
            raise ContextTooLong(
                f"the {bound} is {context} tokens; the prompt has {len(request.prompt)} and "
                f"max_tokens asks for {request.stop.max_tokens} more",
                param="max_tokens",
            )
        waiting = max(len(self._waiting), len(self._by_number) - self._max_running)
        if waiting >= self._max_waiting:
            raise Overloaded(f"{waiting} requests are waiting already; try again later")
        ends = request.stop.stop_token_ids
        if not request.stop.ignore_eos:
            ends = ends | loaded.eos_token_ids
        generation = Generation(next(self._numbers), request, loaded.fingerprint, ends, max_length)
        # From here on it counts, so that many requests within one step cannot overrun the queue.
        self._by_number[generation.number] = generation
        return generation

    # ---- the engine's thread ---------------------------------------------------------------

    def close(self) -> None:
        """Tells all that still run or wait that they were cancelled."""
        for generation in [*self._running, *self._waiting]:
            self._end(generation, Progress(finish=Finish.CANCELLED, counts=generation.counts))
        self.kv.close()

    def step(self) -> bool:
        """One step: read the inbox, plan, run the model, decide, tell. False: nothing to do yet."""
        started = time.perf_counter()
        self._read_inbox()
        more = self.kv.serve()
        self._start_waiting()
        turn = next_turn(self._running, self.limits, not self._prefilled_last)
        self.patience = self.speculation.patience(turn)
        if self.patience or not (turn.decoding or turn.prompt):
            self.speculation.flush()
            return more
        work = plan_step(turn, self.limits, self.speculation.share)
        # Openings go out before the forward pass, so that the drafter starts beside it.
        self.speculation.flush()
        try:
            draws = Draws(self.runner.forward([item.segment for item in work]))
        except Exception as failure:
            self._fail(work, failure)
            return True
        before = self.counters.generated_tokens
        self._decide(work, draws)
        self.speculation.stepped(work, self.counters.generated_tokens - before)
        self.speculation.flush()
        self._count(work, time.perf_counter() - started)
        return True

    def _start_waiting(self) -> None:
        """Gives places and KV room to those who wait, in order; the first that lacks room waits."""
        while self._waiting and len(self._running) < self._max_running:
            generation = self._waiting[0]
            room = generation.max_length
            table = self.runner.pool.allocate(room) or self.kv.make_room(room)
            if table is None:
                return
            self._waiting.popleft()
            generation.sequence.table = table
            self._running.append(generation)
            self.kv.started(generation.number, generation.sequence)
            self.counters.prompt_tokens += len(generation.request.prompt)
            self.speculation.open(generation)

    def _decide(self, work: list[Work], draws: Draws) -> None:
        row = 0
        for item in work:
            try:
                self._decide_one(item, draws, row)
            except SlipstreamError as failure:
                self._end(item.generation, Progress(error=failure))
            except Exception as failure:
                log.exception("request %s failed", item.generation.request.request_id)
                self._end(item.generation, Progress(error=InternalError(str(failure))))
            row += item.segment.num_logits

    def _decide_one(self, item: Work, draws: Draws, row: int) -> None:
        """The verdict on one sequence: draws the rule's own tokens until a draft differs.

        Row i holds the logits after draft i - 1. Each is looked at only if every draft before it
        was what the rule itself draws, so penalties see the true history, and nothing is
        committed after a token that ends the generation.
        """
        generation, sequence, drafts = item.generation, item.generation.sequence, item.drafts
        sequence.computed = item.segment.kv_length - len(drafts)
        if item.segment.num_logits == 0:
            return
        committed: list[CommittedToken] = []
        accepted = 0
        for i in range(len(drafts) + 1):
            token = draws.token(row + i, sequence)
            committed.append(self._with_logprobs(generation, draws, row + i, token))
            generation.append(token)
            matches = i < len(drafts) and drafts[i] == token
            accepted += matches
            if generation.finish or not matches:
                break
        sequence.computed = len(sequence) - 1
        generation.settle(len(committed))
        generation.counts.record(len(drafts), accepted, generation.drafted)
        self.speculation.verified(generation)
        self.counters.count_drafts(len(drafts), accepted, generation.drafted)
        self.counters.generated_tokens += len(committed)
        counts = generation.counts.copy()
        progress = Progress(tuple(committed), generation.finish, counts=counts)
        if generation.finish:
            self._end(generation, progress)
            return
        self.speculation.committed(generation, len(committed))
        generation.request.listener(progress)

    def _with_logprobs(
        self, generation: Generation, draws: Draws, row: int, token: int
    ) -> CommittedToken:
        if generation.request.logprobs is None:
            return CommittedToken(token)
        logprob, top = log_probabilities(draws.row(row), token, generation.request.logprobs)
        return CommittedToken(token, logprob, tuple(top))

    def _count(self, work: list[Work], seconds: float) -> None:
        counters, drafted = self.counters, sum(len(item.drafts) for item in work)
        counters.steps += 1
        counters.step_seconds += seconds
        for item in work:
            item.generation.last_step = counters.steps
        self._prefilled_last = len(work[-1].segment.tokens) - len(work[-1].drafts) > 1
        if not drafted and len(work) == 1 and len(work[0].segment.tokens) == 1:
            counters.plain_steps += 1
            counters.plain_step_seconds += seconds

    def _cancel(self, generation: Generation) -> None:
        if generation.number in self._by_number:
            self._end(generation, Progress(finish=Finish.CANCELLED, counts=generation.counts))

    def _fail(self, work: list[Work], failure: Exception) -> None:
        log.exception("a step failed", exc_info=failure)
        error = InternalError(f"the forward pass failed: {type(failure).__name__}: {failure}")
        for item in work:
            self._end(item.generation, Progress(error=error))

    def _end(self, generation: Generation, progress: Progress) -> None:
        """Frees everything that a generation holds, then tells its listener the last word."""
        del self._by_number[generation.number]
        if generation.sequence.table is None:
            self._waiting.remove(generation)
        else:
            self._running.remove(generation)
            self.kv.ended(generation.number)
            self.runner.pool.release(generation.sequence.table)
        self.counters.stale_draft_tokens += generation.stale_drafts
        self.speculation.close(generation)
        try:
            generation.request.listener(progress)
        except Exception:
            # Nobody is left to tell, and the others must not notice.
            log.exception("the listener of %s failed", generation.request.request_id)
