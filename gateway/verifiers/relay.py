"""One continuation's messages, whatever becomes of the verifiers that make them.

What was decided stays decided: where a verifier is lost, another one is given the tokens so far and
goes on behind them, and decides the same as the first one would have. There is never more than one
call at a time.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable

from gateway.course import Course, Past
from gateway.metrics import Metrics
from gateway.verifiers.link import VerifierLink
from gateway.verifiers.pool import VerifierPool
from gateway.verifiers.served import Lost
from gateway.verifiers.spent import Spent
from slipstream.core.errors import Draining, Overloaded, SlipstreamError
from slipstream.wire.proto import types_pb2, verifier_pb2
from slipstream.wire.telemetry.tracing import Headers

# Before all verifiers are tried again: at first, and at most.
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
log = logging.getLogger(__name__)

Messages = AsyncGenerator[verifier_pb2.GenerateResponse, None]


class Relay:
    """Runs one continuation. `messages` is called once.

    Args:
        job: what the first call asks; changed from call to call.
        past: what was decided before, here or at another gateway.
        course: gives the model's key, and who may have keys and values; is told who has them.
        ends: tokens that end the generation.
        remaining: seconds until the request's deadline; raises DeadlineExceeded behind it.
        trace: names the span that the verifiers' belong to.
    """

    def __init__(
        self,
        pool: VerifierPool,
        metrics: Metrics,
        job: verifier_pb2.GenerateRequest,
        past: Past,
        course: Course,
        *,
        ends: frozenset[int],
        remaining: Callable[[], float | None],
        trace: Headers,
    ) -> None:
        self._pool, self._limits, self._metrics = pool, pool.limits, metrics
        self._job, self._course, self._trace = job, course, trace
        self._ends, self._remaining = ends, remaining
        self._holder = course.kv_holder
        self._spent = Spent(past.messages)
        job.committed_token_ids.extend(past.tokens)
        job.resumed = bool(course.pasts)
        self._first_by = time.monotonic() + self._limits.first_token
        self._lost_at: float | None = None
        self._trouble = Trouble()

    async def messages(self) -> Messages:
        """New ones in order, the last with a finish reason. None of them is without content.

        Raises:
            Overloaded, Draining, Unavailable: no verifier takes it, or where one has, none goes on
                with it within `Limits.failover`.
            DeadlineExceeded: its time is over, or verifiers are silent.
            SlipstreamError: the request's own fault, or what the last verifier failed of.
        """
        while True:
            finish = self._finish()
            if finish is not None:
                yield self._spent.last_word(finish, self._job.sampling.seed)
                return
            link = await self._next()
            try:
                async with contextlib.aclosing(self._call(link)) as messages:
                    async for message in messages:
                        yield message
                        if message.finish_reason:
                            return
            except Lost as lost:
                self._note_loss(link, lost)
            except (Overloaded, Draining) as refusal:
                self._trouble.refused(link, refusal)
            self._spent.next_call()

    async def _call(self, link: VerifierLink) -> Messages:
        """What one verifier makes of it, up to where another one should go on.

        Raises:
            As `VerifierLink.generate`.
        """
        first_by = self._first_by
        if self._job.committed_token_ids:
            first_by = time.monotonic() + self._limits.first_token
        self._address(link)
        drains = False
        calling = link.generate(self._job, self._trace, first_by=first_by)
        async with contextlib.aclosing(calling) as messages:
            async for message in messages:
                drains = drains or message.HasField("draining_seconds")
                given_up = message.finish_reason == types_pb2.FINISH_REASON_CANCELLED
                if given_up:
                    message.ClearField("finish_reason")
                if message.tokens or message.finish_reason:
                    self._advance(link, message)
                    yield self._spent.told(message)
                if given_up:
                    raise link.lost("cancelled", "it gave the generation up")
                if drains and self._move(link):
                    return

    def _address(self, link: VerifierLink) -> None:
        """Completes the job for a call that begins now."""
        self._job.kv_holder = "" if self._holder == link.kv_address else self._holder
        seconds = self._remaining()
        if seconds is not None:
            self._job.deadline_seconds = seconds

    def _advance(self, link: VerifierLink, message: verifier_pb2.GenerateResponse) -> None:
        """Notes what is decided."""
        self._job.committed_token_ids.extend(token.id for token in message.tokens)
        self._course.kv_holder = link.kv_address
        if self._lost_at is not None:
            self._metrics.failover_pause.observe(time.monotonic() - self._lost_at)
            self._lost_at = None
        if self._trouble.errors and message.tokens:
            self._trouble = Trouble()

    def _finish(self) -> types_pb2.FinishReason | None:
        """Why nothing is left to be decided, where the last word itself was lost."""
        committed = self._job.committed_token_ids
        if committed and committed[-1] in self._ends:
            return types_pb2.FINISH_REASON_STOP
        if len(committed) >= self._job.stop.max_tokens:
            return types_pb2.FINISH_REASON_LENGTH
        return None

    def _note_loss(self, link: VerifierLink, lost: Lost) -> None:
        """Raises what the client is told, where nobody is to go on."""
        trouble, tokens = self._trouble, len(self._job.committed_token_ids)
        why = f"{lost.error} ({lost.reason})"
        log.warning("%s, after %d tokens: %s", self._job.request_id, tokens, why)
        if self._finish() is not None:
            # It lost its last word only, which is known without it.
            return
        silent_again = lost.reason == "silent" and trouble.silent
        trouble.lost(link, lost)
        if silent_again or trouble.losses > self._limits.failovers or not self._limits.failovers:
            raise lost.error
        if not lost.passing and self._choose() is None:
            raise lost.error
        self._go_on(lost.reason, taken=lost.reached)
        if lost.reason == "cancelled":
            # It stops in order, and lends what it has until then.
            self._holder = link.kv_address
        if not self._pool.serves(self._holder):
            self._holder = ""

    def _move(self, link: VerifierLink) -> bool:
        """Whether another one is there to go on, now that this one drains."""
        if not self._limits.failovers or self._choose() is None:
            return False
        log.info("%s: leaves the verifier at %s", self._job.request_id, link.address)
        self._holder = link.kv_address
        self._go_on("draining", taken=True)
        return True

    def _go_on(self, reason: str, *, taken: bool) -> None:
        self._metrics.failovers[reason] += 1
        self._trouble.since = time.monotonic()
        self._lost_at = self._lost_at or self._trouble.since
        # Who took it once does not compete with what is new.
        self._job.resumed = self._job.resumed or taken

    def _choose(self) -> VerifierLink | None:
        avoid = self._trouble.avoid
        return self._pool.choose(self._course.model_key, holder=self._holder, avoid=avoid)

    async def _next(self) -> VerifierLink:
        """The verifier for the next call: each that is there once, then all again after a pause.

        Raises:
            SlipstreamError: nobody takes it, or nobody in time.
        """
        trouble = self._trouble
        while True:
            link = self._choose()
            if link is not None:
                return link
            left = trouble.since + self._limits.failover - time.monotonic()
            if left <= 0 or not self._job.resumed:
                raise trouble.worst() or self._pool.nobody(self._course.model_key)
            seconds = self._remaining()
            pause = min(left, trouble.pause, math.inf if seconds is None else seconds)
            if not await self._pool.changed(pause):
                trouble.try_again()


class Trouble:
    """What went wrong since the last new token.

    Attributes:
        errors: all of it, in order.
        losses: times that a verifier was lost which may have been the request's doing.
        silent: whether one was lost as its stream was silent.
        since: on `time.monotonic()`'s clock, when the present search for a verifier began.
        pause: seconds until those that failed are tried again.
    """

    def __init__(self) -> None:
        self.errors: list[SlipstreamError] = []
        self.losses = 0
        self.silent = False
        self.since = time.monotonic()
        self.pause = _PAUSE_SECONDS
        self._avoid: set[VerifierLink] = set()

    @property
    def avoid(self) -> set[VerifierLink]:
        """Those that failed and serve all the same. One that was away and is back is as new."""
        self._avoid = {link for link in self._avoid if link.state == "serving"}
        return self._avoid

    def lost(self, link: VerifierLink, lost: Lost) -> None:
        self.refused(link, lost.error)
        self.silent = self.silent or lost.reason == "silent"
        self.losses += lost.reached

    def refused(self, link: VerifierLink, error: SlipstreamError) -> None:
        if not self.errors:
            self.since = time.monotonic()
        self.errors.append(error)
        self._avoid.add(link)

    def try_again(self) -> None:
        self._avoid.clear()
        self.pause = min(2 * self.pause, _LONGEST_PAUSE_SECONDS)

    def worst(self) -> SlipstreamError | None:
        """What the client is told: who is soonest to have room, or else what came last."""
        full = [error for error in self.errors if isinstance(error, Overloaded)]
        if full:
            return min(full, key=lambda error: error.retry_after or 0.0)
        return self.errors[-1] if self.errors else None
