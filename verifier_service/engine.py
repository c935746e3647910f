"""The verifier's engine: the loop that decides every token."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from slipstream.core.draft import Proposal, Refusal
from slipstream.core.errors import DeadlineExceeded, InternalError, Overloaded, SlipstreamError
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.loop import EngineLoop
from slipstream.engine.runner import ModelRunner
from verifier_service.admission import Admission, Bounds, retry_after
from verifier_service.budget import PromptBudget
from verifier_service.counters import EngineCounters
from verifier_service.generation import Finish, Generation, GenerationRequest, Progress
from verifier_service.kv_holder import KvHolder
from verifier_service.layouts import Drafter
from verifier_service.plan import Limits, StepPlan, Work, plan_step
from verifier_service.rooms import Rooms
from verifier_service.scheduler import Scheduler
from verifier_service.speculation import Speculation
from verifier_service.verdict import decide

log = logging.getLogger(__name__)
# How much longer than the longest expected wait a request may really wait: estimates err.
_GIVEN_UP = 2.0


class VerifierEngine(EngineLoop):
    """Serves generations with one model, step by step, on a thread of its own.

    Submit, cancel and deliver from any thread; they only fill the inbox, which the engine
    empties once a step. What it decides goes to the drafter through `speculation` and then, since
    nobody waits for that, out through each request's listener, both on the engine's thread.

    Args:
        speculation: keeps the drafter informed and decides about drafts.
        kv: leases on keys and values; touched on the engine's thread only.
        max_running: most sequences with a place; `bounds`: what may wait for one.
        stretch: most times as long that a step may take because of prompts.
        clock: seconds.
    """

    def __init__(
        self,
        runner: ModelRunner,
        speculation: Speculation,
        *,
        limits: Limits,
        max_running: int = 128,
        bounds: Bounds | None = None,
        stretch: float = 1.75,
        kv: KvHolder | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__()
        self.runner = runner
        self.kv = kv or KvHolder(runner)
        self.counters = EngineCounters()
        self.limits = limits
        self.speculation = speculation
        self.telemetry = speculation.telemetry
        self.bounds = bounds or Bounds()
        self.admission = Admission(runner.loaded, self.max_length, self.bounds, max_running, clock)
        rooms = Rooms(runner.pool, self.kv, limits)
        self.scheduler = Scheduler(rooms, limits, max_running, self._started, self._preempted)
        self._rooms = rooms
        self._budget = PromptBudget(speculation.step_seconds, speculation.waited, stretch)
        self._clock = clock
        self._by_number: dict[int, Generation] = {}
        # next() on it is atomic, so two threads that submit never share a number.
        self._numbers = itertools.count(1)
        # No deadline is before this.
        self._next_deadline = math.inf
        # What listeners are to hear when the step is over.
        self._news: deque[tuple[Generation, Progress]] = deque()

    # ---- from any thread -------------------------------------------------------------------

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence: the model's context window, or what the KV pool can hold."""
        runner = self.runner
        return min(runner.loaded.context_length, runner.pool.num_blocks * BLOCK_TOKENS)

    @property
    def num_running(self) -> int:
        return self.scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    @property
    def num_alive(self) -> int:
        """Generations that have not ended, those included that the engine has not seen yet."""
        return len(self._by_number)

    @property
    def expected_wait_seconds(self) -> float:
        """That a request which came now would wait until its prompt is begun."""
        return self.admission.expected_wait()

    def submit(self, request: GenerationRequest) -> Callable[[], None]:
        """Queues a request; calling the result cancels it within a step.

        Raises:
            InvalidParameter, ContextTooLong: it can never be served.
            DeadlineExceeded: there is no time left for it.
            Overloaded: too much is waiting.
        """
        generation = self.admission.admit(next(self._numbers), request)
        self._by_number[generation.number] = generation
        self.post(lambda: self._queue(generation))
        return lambda: self.post(lambda: self._cancel(generation))

    def deliver(
        self,
        connection: int,
        proposals: list[Proposal],
        refusals: list[Refusal],
        draft_seconds: float = 0.0,
    ) -> None:
        """Drafts arrived from a drafter connection, which takes `draft_seconds` for one."""
        at, vocab = self._clock(), self.runner.loaded.config.vocab_size
        take, known = self.speculation.take, self._by_number
        self.post(lambda: take(connection, proposals, refusals, known, vocab, at, draft_seconds))

    def drafter_up(self, connection: int, drafter: Drafter) -> None:
        """A drafter is there: live sequences are opened on it."""
        self.post(lambda: self.speculation.connect(connection, drafter, self.scheduler.running))

    def drafter_down(self, connection: int) -> None:
        """A drafter is gone: decoding goes on without."""
        self.post(lambda: self.speculation.disconnect(connection, self.scheduler.running))

    # ---- the engine's thread ---------------------------------------------------------------

    def close(self) -> None:
        """Tells all that still run or wait that they were cancelled."""
        for generation in list(self.scheduler):
            self._end(generation, Progress(finish=Finish.CANCELLED, counts=generation.counts))
        self._tell()
        self.kv.close()

    def step(self) -> bool:
        """One step: read the inbox, plan, run the model, decide, tell. False: nothing to do yet."""
        worked = self._step()
        self._tell()
        return worked

    def _step(self) -> bool:
        started = self._clock()
        self._read_inbox()
        more = self.kv.serve()
        self._end_late(started)
        turn = self.scheduler.next_turn()
        self.admission.planned(self.scheduler.places, self.scheduler.unfinished)
        self.patience = self.speculation.patience(turn)
        if self.patience or not (turn.decoding or turn.prompts):
            self._rest(started)
            return more
        plan = plan_step(turn, self.limits, self.speculation.share, self._budget.rows)
        log.debug("step %d: %s", self.counters.steps + 1, plan)
        # Openings go out before the forward pass, so that the drafter starts beside it.
        self.speculation.flush()
        try:
            draws = Draws(self.runner.forward(plan.segments))
        except Exception as failure:
            self._fail(plan.work, failure)
            return True
        before = self.counters.generated_tokens
        self._decide(plan.work, draws)
        tokens = self.counters.generated_tokens - before
        self.speculation.stepped(plan.work, tokens)
        ended = self._clock()
        self.telemetry.last_step = (started, ended, len(plan.work))
        self.speculation.flush()
        self._account(plan, tokens, started, ended)
        return True

    def _rest(self, now: float) -> None:
        """There is nothing to compute, until a draft is late or a deadline over."""
        self.speculation.flush()
        if not self.num_running + self.num_waiting:
            self.admission.idle()
            self._next_deadline = math.inf
        if self._next_deadline < math.inf:
            left = max(0.001, self._next_deadline - now)
            self.patience = min(self.patience or left, left)

    def _account(self, plan: StepPlan, tokens: int, started: float, ended: float) -> None:
        """What the step `plan`, which committed so many tokens, says of the next."""
        self.telemetry.stepped(plan.work, started, ended)
        self.counters.stepped(plan.work, ended - started)
        self.scheduler.stepped(plan)
        self._budget.observe(plan, ended - started)
        self.admission.stepped(plan.prompt_rows, tokens)

    def _queue(self, generation: Generation) -> None:
        self.scheduler.add(generation)
        self._next_deadline = min(self._next_deadline, self._until(generation))

    def _until(self, generation: Generation) -> float:
        """When a generation is ended if it has not got so far."""
        if generation.started or generation.request.resumed:
            return generation.deadline
        return min(generation.deadline, generation.arrived + _GIVEN_UP * self.bounds.seconds)

    def _end_late(self, now: float) -> None:
        """Ends those whose deadline is over, whether they run or wait."""
        if now < self._next_deadline:
            return
        for generation in [g for g in self.scheduler if self._until(g) <= now]:
            waited = now - generation.arrived
            error: SlipstreamError
            if generation.deadline <= now:
                self.counters.deadlines += 1
                error = DeadlineExceeded(f"the deadline was {waited:.1f} s after the request came")
            else:
                self.counters.given_up += 1
                error = Overloaded(
                    f"there was no place within {waited:.1f} s",
                    retry_after=retry_after(self.expected_wait_seconds),
                )
            self._end(generation, Progress(error=error))
        self._next_deadline = min(map(self._until, self.scheduler), default=math.inf)

    def _started(self, generation: Generation) -> None:
        """It has a place, for the first time or again."""
        self.kv.started(generation.number, generation.sequence)
        if not generation.started:
            self.admission.left(generation)
            given, todo = generation.request.given, generation.sequence.todo
            self.admission.drain.started(given, given - todo)
            self.counters.started(generation)
        self.speculation.open(generation)
        self.telemetry.started(generation)

    def _preempted(self, generation: Generation) -> None:
        """It has lost its place for some time."""
        self.counters.preemptions += 1
        log.info("%s gives its room in the KV pool back", generation.request.request_id)
        self.speculation.suspend(generation)

    def _decide(self, work: tuple[Work, ...], draws: Draws) -> None:
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
        generation, drafts = item.generation, item.drafts
        generation.sequence.computed = item.segment.kv_length - len(drafts)
        if item.segment.num_logits == 0:
            self._rooms.publish(generation)
            return
        if not generation.num_new:
            self.counters.prefilled(generation)
        pending = generation.num_pending
        verdict = decide(item, draws, row)
        self._rooms.publish(generation)
        count = len(verdict.tokens)
        self.speculation.verified(generation)
        self.counters.decided(count, len(drafts), verdict.accepted, generation.drafted)
        self.telemetry.decided(generation, pending, count, verdict.accepted)
        self.scheduler.generated(generation, count)
        counts = generation.counts.copy()
        progress = Progress(verdict.tokens, generation.finish, None, counts, generation.cached)
        if generation.finish:
            self.admission.drain.ended(generation.num_new)
            self._end(generation, progress)
            return
        self.speculation.committed(generation, count)
        self._news.append((generation, progress))

    def _cancel(self, generation: Generation) -> None:
        if generation.number in self._by_number:
            self._end(generation, Progress(finish=Finish.CANCELLED, counts=generation.counts))

    def _fail(self, work: tuple[Work, ...], failure: Exception) -> None:
        log.exception("a step failed", exc_info=failure)
        error = InternalError(f"the forward pass failed: {type(failure).__name__}: {failure}")
        for item in work:
            self._end(item.generation, Progress(error=error))

    def _end(self, generation: Generation, progress: Progress) -> None:
        """Frees everything that a generation holds; its listener will hear the last word."""
        del self._by_number[generation.number]
        if generation.started:
            self.kv.ended(generation.number)
        else:
            self.admission.left(generation)
        self.scheduler.remove(generation)
        self.counters.stale_draft_tokens += generation.stale_drafts
        self.speculation.close(generation)
        self.telemetry.ended(generation, progress)
        self._news.append((generation, progress))

    def _tell(self) -> None:
        """Tells listeners what became of their requests.

        It wakes the event loop, which sends it on with the interpreter's lock held: after the
        drafter has been told, or drafting would start half a millisecond late.
        """
        while self._news:
            generation, progress = self._news.popleft()
            try:
                generation.request.listener(progress)
            except Exception as failure:
                # Nobody is left to tell, and the others must not notice.
                log.exception("the listener of %s failed", generation.request.request_id)
                if generation.number in self._by_number:
                    self._end(generation, Progress(error=InternalError(str(failure))))
