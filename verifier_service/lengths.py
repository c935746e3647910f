"""The length policy at work: what is measured goes in, each sequence's run length comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.generation import Generation
from verifier_service.measured import Measured
from verifier_service.policy import Target, best_lengths

# Drafts ahead while they are being tried.
_PROBE_WINDOW = 3
# Lengths are chosen anew after so many steps, or when somebody comes or goes.
_STEPS = 4
# Of the time that drafts would save if an answer took all the tokens that it may.
_COLD_SHARE = 0.25
# Of a wait for as many drafts with the context there; and the least time for the context, in steps.
_COLD_PATIENCE, _CONTEXT_STEPS = 2.0, 8.0
# Longest run that is considered, and how far a drafter with a device of its own runs ahead.
LONGEST_RUN, AHEAD = 12, 8


class Lengths:
    """Chooses how many drafts each sequence should have. One owner.

    Args:
        window: how far beyond the last commit a drafter may run; None: AHEAD where it has a
            device of its own, and as far as pays where the two take turns.
        rows: most rows of a step for decoding and verification.

    Attributes:
        target: the last choice.
        longest: of the runs that are considered; `ahead`: the window side by side.
    """

    def __init__(self, measured: Measured, window: int | None, rows: int) -> None:
        self.target = Target()
        self.longest = window or LONGEST_RUN
        self._measured = measured
        self._rows = rows
        self.ahead = window or AHEAD
        self._steps = 0
        self._company: tuple[int, ...] = ()

    def choose(self, sequences: int, drafting: Sequence[Generation]) -> bool:
        """Before a step of `sequences` sequences, of which some have a drafter.

        Returns:
            Whether lengths were chosen anew: estimates move slowly, and in Python this takes as
            long as a small kernel.
        """
        self._steps += 1
        company = (sequences, *(g.number for g in drafting))
        off = any(g.probes.steps_off for g in drafting)
        if company == self._company and self._steps % _STEPS and not off:
            return False
        self._company = company
        self._choose(sequences, drafting)
        return True

    def _choose(self, sequences: int, drafting: Sequence[Generation]) -> None:
        measured, burst = self._measured, self._measured.layout.burst
        best = best_lengths(
            quiet=measured.cost(beside=False),
            beside=measured.cost(beside=not burst),
            survivals=[g.acceptance.survival(self.longest) for g in drafting],
            waiting=measured.wait,
            stepping=0.0 if burst else measured.arrival.stepping,
            sequences=sequences,
            most_rows=max(self._rows, sequences),
        )
        lengths = list(best.lengths)
        for i, generation in enumerate(drafting):
            if burst and generation.late and not generation.warm:
                generation.wanted = lengths[i] = 0
                continue
            probes = generation.probes
            probes.count(lengths[i] > 0)
            if probes.due:
                generation.acceptance.forget()
                if measured.reported and not best.length:
                    measured.arrival.forget()
            if probes.on and burst:
                # Taking turns, a probe has to wait for its draft; side by side it need not.
                lengths[i] = 1
            generation.wanted = lengths[i]
        self.target = replace(best, lengths=tuple(lengths))

    def cold_patience(self, generation: Generation) -> float:
        """Most seconds to wait for a sequence's first drafts.

        A share of what they would save, and no more than a drafter needs that is as slow with the
        prompt as the verifier, and as fast with drafts as it is thought to be.
        """
        target, measured = self.target, self._measured
        if not target.plain or target.rate <= target.plain:
            return 0.0
        remaining = generation.max_length - len(generation.sequence)
        saved = remaining * (1.0 / target.plain - 1.0 / target.rate)
        cost = measured.cost(beside=False)
        row = cost(MAX_STRICT_ROWS) / MAX_STRICT_ROWS
        context = max(row * generation.sequence.num_prompt, _CONTEXT_STEPS * cost(1))
        return min(_COLD_SHARE * saved, context + _COLD_PATIENCE * measured.wait(generation.wanted))

    def window(self, generation: Generation) -> int:
        """How far the drafter may run ahead."""
        if not generation.wanted and self.target.rate:
            return min(_PROBE_WINDOW, self.ahead) if generation.probes.on else 0
        if self._measured.layout.burst:
            return max(1, generation.wanted)
        return self.ahead
