"""What the drafter's engine has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from drafter_service.draft import Work


@dataclass(slots=True)
class DraftCounters:
    """Totals since the start. Written by the engine's thread, read by anyone."""

    steps: int = 0
    step_seconds: float = 0.0
    drafted_tokens: int = 0
    rolled_back_tokens: int = 0
    # N-gram guesses that had rows in a pass, and those that were what the drafter drew.
    guessed_tokens: int = 0
    right_guesses: int = 0
    # Times that drafting paused for want of confidence.
    early_stops: int = 0
    # Moving average of steps that advance one sequence by one token.
    single_step_seconds: float = 0.0
    # Passes that were a prompt's rows and nothing else.
    prefilled_positions: int = 0
    prefill_seconds: float = 0.0

    @property
    def prefill_position_seconds(self) -> float:
        """Mean for one position of a prompt; 0 where none was computed yet."""
        return self.prefill_seconds / max(1, self.prefilled_positions)

    def passed(self, work: Sequence[Work], seconds: float) -> None:
        """A pass took `seconds`."""
        self.steps += 1
        self.step_seconds += seconds
        if len(work) == 1 and len(work[0].segment.tokens) == 1:
            before = self.single_step_seconds or seconds
            # Steps that stall say less of the next one than those that do not.
            share = 0.3 if seconds < before else 0.05
            self.single_step_seconds = before + share * (seconds - before)
        elif len(work) == 1 and len(work[0].segment.tokens) > work[0].draft.window + 1:
            self.prefilled_positions += len(work[0].segment.tokens)
            self.prefill_seconds += seconds
