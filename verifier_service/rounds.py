"""Rounds between verifier and drafter, as the link sees them: a commit goes out, drafts come back.

All of it on the event loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from slipstream.core.draft import Close, Command, Commit, Open, Proposal, SetWindow
from slipstream.wire.telemetry.metrics import GAP, Tally
from slipstream.wire.telemetry.tracing import NO_SPAN, NO_TRACING, Span, Tracing
from verifier_service.telemetry import Telemetry


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
        self._open: dict[int, _Round] = {}
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
                self._end(command.sequence_id)
                length = command.prefix.length + len(command.tokens)
                self._open[command.sequence_id] = _Round(now, length, span)
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
            waiting = self._open.get(proposal.sequence_id)
            # Those that the drafter made without knowing of the commit do not answer it.
            if waiting is None or not proposal.tokens or proposal.committed < waiting.length:
                continue
            self.round_trip.observe(at - waiting.sent)
            if waiting.span.recording:
                waiting.span.set({"slipstream.draft_tokens": len(proposal.tokens)})
                waiting.span.event("drafted", at)
            self._end(proposal.sequence_id)

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
        ended = self._open.pop(number, None)
        if ended is not None:
            ended.span.end()

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
