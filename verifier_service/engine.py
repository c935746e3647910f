"""The verifier's engine: the loop that decides every token."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable

from slipstream.core.draft import Proposal, Refusal
from slipstream.core.errors import InternalError, Overloaded, SlipstreamError
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import BLOCK_TOKENS
from slipstream.engine.loop import EngineLoop
from slipstream.engine.runner import ModelRunner
from verifier_service.admission import admit
from verifier_service.counters import EngineCounters
from verifier_service.generation import Finish, Generation, GenerationRequest, Progress
from verifier_service.kv_holder import KvHolder
from verifier_service.layouts import Drafter
from verifier_service.plan import Limits, Work, next_turn, plan_step
from verifier_service.speculation import Speculation
from verifier_service.verdict import decide

log = logging.getLogger(__name__)


class VerifierEngine(EngineLoop):
    """Serves generations with one model, step by step, on a thread of its own.

    Submit, cancel and deliver from any thread; they only fill the inbox, which the engine
    empties once a step. What it decides goes to the drafter through `speculation` and then, since
    nobody waits for that, out through each request's listener, both on the engine's thread.

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
        self.telemetry = speculation.telemetry
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._waiting: deque[Generation] = deque()
        self._running: deque[Generation] = deque()
        self._by_number: dict[int, Generation] = {}
        # next() on it is atomic, so two threads that submit never share a number.
        self._numbers = itertools.count(1)
        self._prefilled_last = False
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
        generation = admit(next(self._numbers), request, self.runner.loaded, self.max_length)
        waiting = max(len(self._waiting), len(self._by_number) - self._max_running)
        if waiting >= self._max_waiting:
            raise Overloaded(f"{waiting} requests are waiting already; try again later")
        # From here on it counts, so that many requests within one step cannot overrun the queue.
        self._by_number[generation.number] = generation
        return generation

    # ---- the engine's thread ---------------------------------------------------------------

    def close(self) -> None:
        """Tells all that still run or wait that they were cancelled."""
        for generation in [*self._running, *self._waiting]:
            self._end(generation, Progress(finish=Finish.CANCELLED, counts=generation.counts))
        self._tell()
        self.kv.close()

    def step(self) -> bool:
        """One step: read the inbox, plan, run the model, decide, tell. False: nothing to do yet."""
        worked = self._step()
        self._tell()
        return worked

    def _step(self) -> bool:
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
        ended = time.perf_counter()
        self.telemetry.last_step = (started, ended, len(work))
        self.speculation.flush()
        self.telemetry.stepped(work, started, ended)
        self.counters.stepped(work, ended - started)
        self._prefilled_last = not work[-1].decodes
        for item in work:
            item.generation.last_step = self.counters.steps
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
            self.telemetry.started(generation)

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
        generation, drafts = item.generation, item.drafts
        generation.sequence.computed = item.segment.kv_length - len(drafts)
        if item.segment.num_logits == 0:
            return
        pending = generation.num_pending
        verdict = decide(item, draws, row)
        count = len(verdict.tokens)
        self.speculation.verified(generation)
        self.counters.decided(count, len(drafts), verdict.accepted, generation.drafted)
        self.telemetry.decided(generation, pending, count, verdict.accepted)
        counts = generation.counts.copy()
        progress = Progress(verdict.tokens, generation.finish, counts=counts)
        if generation.finish:
            self._end(generation, progress)
            return
        self.speculation.committed(generation, count)
        self._news.append((generation, progress))

    def _cancel(self, generation: Generation) -> None:
        if generation.number in self._by_number:
            self._end(generation, Progress(finish=Finish.CANCELLED, counts=generation.counts))

    def _fail(self, work: list[Work], failure: Exception) -> None:
        log.exception("a step failed", exc_info=failure)
        error = InternalError(f"the forward pass failed: {type(failure).__name__}: {failure}")
        for item in work:
            self._end(item.generation, Progress(error=error))

    def _end(self, generation: Generation, progress: Progress) -> None:
        """Frees everything that a generation holds; its listener will hear the last word."""
        del self._by_number[generation.number]
        if generation.sequence.table is None:
            self._waiting.remove(generation)
        else:
            self._running.remove(generation)
            self.kv.ended(generation.number)
            self.runner.pool.release(generation.sequence.table)
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
