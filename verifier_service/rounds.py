"""Rounds between verifier and drafter, as the link sees them: a commit goes out, drafts come back.

All of it on the event loop.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.core.draft import Close, Command, Commit, Open, Proposal, SetWindow
from slipstream.wire.telemetry.metrics import GAP, Tally
from slipstream.wire.telemetry.tracing import NO_SPAN, NO_TRACING, Span, Tracing
from verifier_service.telemetry import Telemetry

# Commits of a sequence that wait for an answer; a drafter that is further behind is stuck.
_MOST_OPEN = 64


@dataclass(frozen=True, slots=True)
class _Round:
    """A commit that no draft has answered yet."""

    sent: float
    length: int
    span: Span


class Rounds:
    """Times rounds, and traces a share of those of traced requests.

    Args:
        share: of rounds that get a span of their own; 0 for none.

    Attributes:
        round_trip: seconds from a commit to the first draft that continues it.
    """

    def __init__(
        self, telemetry: Telemetry, tracing: Tracing = NO_TRACING, share: float = 0.0
    ) -> None:
        self.round_trip = Tally(GAP)
        self._telemetry = telemetry
        self._tracing = tracing
        self._share = share
        self._open: dict[int, deque[_Round]] = {}
        # Sequences that no drafts are wanted for: their commits are answered by none.
        self._silent: set[int] = set()

    def sent(self, commands: Sequence[Command]) -> str:
        """Commands are on their way. Returns the traceparent of a traced round among them."""
        now, traced = time.perf_counter(), NO_SPAN
        for command in commands:
            if isinstance(command, Commit):
                if command.sequence_id in self._silent:
                    continue
                span = self._trace(command)
                traced = span if span.recording else traced
                length = command.prefix.length + len(command.tokens)
                rounds = self._open.setdefault(command.sequence_id, deque())
                rounds.append(_Round(now, length, span))
                if len(rounds) > _MOST_OPEN:
                    rounds.popleft().span.end()
            elif isinstance(command, Open | SetWindow):
                self._hear_window(command.sequence_id, command.window)
            elif isinstance(command, Close):
                self._hear_window(command.sequence_id, 1)
                self._end(command.sequence_id)
        return traced.headers.get("traceparent", "")

    def heard(self, proposals: Sequence[Proposal], computed: float) -> None:
        """Drafts have come, of a drafter that has computed for so many seconds in all."""
        at = time.perf_counter()
        self._telemetry.overlap.heard(at, computed)
        for proposal in proposals:
            rounds = self._open.get(proposal.sequence_id)
            # Drafts that were made without knowing of a commit do not answer it.
            while rounds and proposal.tokens and rounds[0].length <= proposal.committed:
                answered = rounds.popleft()
                self.round_trip.observe(at - answered.sent)
                if answered.span.recording:
                    answered.span.set({"slipstream.draft_tokens": len(proposal.tokens)})
                    answered.span.event("drafted", at)
                answered.span.end()

    def lost(self) -> None:
        """The drafter is gone, and with it what it might have answered."""
        self._telemetry.overlap.lost()
        self._silent.clear()
        for number in list(self._open):
            self._end(number)

    def _hear_window(self, number: int, window: int) -> None:
        if window:
            self._silent.discard(number)
        else:
            self._silent.add(number)
            self._end(number)

    def _end(self, number: int) -> None:
        for unanswered in self._open.pop(number, ()):
            unanswered.span.end()

    def _trace(self, commit: Commit) -> Span:
        if not self._share or random.random() >= self._share:
            return NO_SPAN
        request = self._telemetry.spans.get(commit.sequence_id)
        if request is None:
            return NO_SPAN
        began, ended, sequences = self._telemetry.last_step
        span = self._tracing.span("round", parent=request.headers, at=began)
        span.set(
            {
                "slipstream.sequence": commit.sequence_id,
                "slipstream.length": commit.prefix.length,
                "slipstream.committed_tokens": len(commit.tokens),
                "slipstream.step_sequences": sequences,
            }
        )
        span.event("committed", ended)
        return span
