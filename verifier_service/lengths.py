"""The length policy at work: what is measured goes in, each sequence's run length comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.generation import Generation
from verifier_service.measured import Measured
from verifier_service.policy import Target, best_lengths
from verifier_service.probes import Probes

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
        self._company: tuple[object, ...] = ()
        # While nobody has drafts.
        self._probes = Probes()

    def choose(self, sequences: int, drafting: Sequence[Generation]) -> bool:
        """Before a step of `sequences` sequences, of which some have a drafter.

        Returns:
            Whether lengths were chosen anew: estimates move slowly, and in Python this takes as
            long as a small kernel.
        """
        self._steps += 1
        company = (self._measured.layout, sequences, *(g.number for g in drafting))
        regular = self._steps % _STEPS == 0
        # What a probe finds is used at once.
        trying = any(g.probing for g in drafting)
        if company == self._company and not regular and not trying:
            return False
        self._company = company
        if not self._measured.layout.drafts:
            self._none(sequences, drafting)
            return True
        # Whoever has no drafts waits for those of the others, and that is part of their price.
        survivals = [
            [] if self._given_up(g) else g.acceptance.survival(self.longest) for g in drafting
        ]
        best = self._best(sequences, survivals)
        if regular:
            self._probe(best, sequences, drafting)
        lengths = [self._wanted(g, n) for g, n in zip(drafting, best.lengths, strict=True)]
        self.target = replace(best, lengths=tuple(lengths))
        return True

    def _none(self, sequences: int, drafting: Sequence[Generation]) -> None:
        """Nobody has drafts, and nobody tries any."""
        plain = sequences / self._measured.cost(beside=False)(sequences)
        self.target = Target((0,) * len(drafting), plain, plain)
        for generation in drafting:
            generation.wanted, generation.probing = 0, False

    def _best(self, sequences: int, survivals: Sequence[Sequence[float]]) -> Target:
        measured, burst = self._measured, self._measured.layout.burst
        return best_lengths(
            quiet=measured.cost(beside=False),
            beside=measured.cost(beside=not burst),
            survivals=survivals,
            waiting=measured.wait,
            stepping=0.0 if burst else measured.arrival.stepping,
            sequences=sequences,
            most_rows=max(self._rows, sequences),
        )

    def _probe(self, best: Target, sequences: int, drafting: Sequence[Generation]) -> None:
        """Lets sequences whose drafts are not worth it try some all the same, now and then.

        Beside others that have drafts each does so for itself. Where nobody has any, all try once
        and from then on one for all, or a crowd would always wait for somebody's; and hardly ever
        where not even drafts that are always right would pay, as in a full batch.
        """
        if best.length:
            # What paid for nobody pays for one again: so the others try at once.
            if self._probes.off + self._probes.tried:
                for generation in drafting:
                    generation.probes = Probes(soon=True)
                self._probes = Probes()
            for generation, length in zip(drafting, best.lengths, strict=True):
                generation.probes.count(length > 0)
                self._try(generation, generation.probes)
            return
        perfect = self._best(sequences, [[1.0] * self.longest] * len(drafting))
        hopeless = self._measured.arrival.measured and not perfect.length
        self._probes.count(worth=False, rarely=hopeless)
        if self._probes.due and self._measured.reported:
            self._measured.arrival.forget()
        for i, generation in enumerate(drafting):
            generation.probing = False
            if not self._probes.tried or i == self._probes.tried % len(drafting):
                self._try(generation, self._probes)

    def _given_up(self, generation: Generation) -> bool:
        """Taking turns, first drafts that were waited for in vain are not asked for again."""
        return self._measured.layout.burst and generation.late and not generation.warm

    def _try(self, generation: Generation, probes: Probes) -> None:
        generation.probing = probes.on and not self._given_up(generation)
        if probes.due:
            generation.acceptance.forget()

    def _wanted(self, generation: Generation, length: int) -> int:
        """Drafts that a sequence waits for; `length` is what is best."""
        if self._given_up(generation):
            length = 0
        elif self._measured.layout.burst and generation.probing:
            # Taking turns, a probe has to wait for its draft; side by side it need not.
            length = 1
        generation.wanted = length
        return length

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
            return min(_PROBE_WINDOW, self.ahead) if generation.probing else 0
        if self._measured.layout.burst:
            return max(1, generation.wanted)
        return self.ahead
