"""N-gram assist: the drafter's model checks guesses at its next tokens, several in one pass.

Where text copies what was there before, an index over the committed tokens guesses what the
drafter will draw. Rows for the guesses ride along in its pass, and it advances by all that are
right and one more. It draws each token by its own rule, so the drafts are what they would be
without, only sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from drafter_service.draft import Draft, Part, Work
from drafter_service.pass_seconds import MOST_ROWS, PassSeconds
from drafter_service.stage import Drawn
from slipstream.core.goodput import share_rows
from slipstream.core.ngram import Guess, NgramProposer
from slipstream.core.runs import agreement

Assistance = Literal["off", "on", "auto"]
# How much of a long prompt is read into the index before one pass: about 2 ms.
_READ_AT_ONCE = 512


@dataclass(slots=True)
class _Guesser:
    """What is known of one sequence.

    Attributes:
        guess: what may come of the pass under way, whether rows check it or not.
    """

    proposer: NgramProposer
    guess: Guess = field(default_factory=Guess)


class Assist(Part):
    """Chooses guesses for the sequences of a pass, and learns how they fare.

    Args:
        automatic: guesses only as far as they are expected to raise the drafts made per second,
            by the measured share of right ones and the measured time of a pass; else always.
    """

    def __init__(self, *, automatic: bool) -> None:
        self._automatic = automatic
        self._guessers: dict[Draft, _Guesser] = {}
        self.seconds = PassSeconds()

    def opened(self, draft: Draft) -> None:
        self._guessers[draft] = _Guesser(NgramProposer())

    def closed(self, draft: Draft) -> None:
        del self._guessers[draft]

    def choose(self, ready: Sequence[Draft], rows: int) -> list[tuple[int, ...]]:
        """Guesses for each sequence of a pass that has `rows` rows without them.

        Of each sequence there are at most `room - 1`, as the pass yields one token more than
        guesses that are right; and no pass gets more than MOST_ROWS rows by them.
        """
        guesses = [self._guess(draft, MOST_ROWS - rows) for draft in ready]
        # One row of each sequence is counted by `share_rows`; what it has to compute may be more.
        more = rows - len(ready)

        def cost(shared: int) -> float:
            return self.seconds.estimate(more + shared) if self._automatic else 1.0

        counts = share_rows([guess.chances for guess in guesses], cost, MOST_ROWS - more)
        for draft, guess in zip(ready, guesses, strict=True):
            self._guessers[draft].guess = guess
        return [guess.tokens[:count] for guess, count in zip(guesses, counts, strict=True)]

    def passed(self, work: Sequence[Work], drawn: Sequence[Drawn], seconds: float) -> None:
        self.seconds.observe(sum(len(item.segment.tokens) for item in work), seconds)
        for item, result in zip(work, drawn, strict=True):
            guesser = self._guessers.get(item.draft)
            if guesser is not None:
                self._learn(guesser, result.tokens)

    @staticmethod
    def _learn(guesser: _Guesser, drawn: Sequence[int]) -> None:
        """Compares what was drawn with what was or would have been guessed: both teach alike."""
        guess = guesser.guess
        compared = min(len(guess.tokens), len(drawn))
        guesser.proposer.learn(guess.match, compared, agreement(guess.tokens, drawn))

    def _guess(self, draft: Draft, most: int) -> Guess:
        most = min(most, draft.room - 1)
        # A pass that ends before the sequence's end draws nothing.
        if most <= 0 or draft.sequence.todo > draft.window + 1:
            return Guess()
        guesser = self._guessers[draft]
        if not self._catch_up(draft, guesser):
            return Guess()
        return guesser.proposer.guess(draft.sequence.tokens[draft.committed :], most)

    def _catch_up(self, draft: Draft, guesser: _Guesser) -> bool:
        """Extends the index by committed tokens; whether it holds all of them then."""
        proposer, tokens = guesser.proposer, draft.sequence.tokens
        end = min(draft.committed, len(proposer) + _READ_AT_ONCE)
        # What the drafter draws is to be guessed, not what the verifier decides: `_learn` does it.
        proposer.read(tokens[len(proposer) : end])
        return end == draft.committed


def make_assist(setting: Assistance) -> Assist | None:
    return None if setting == "off" else Assist(automatic=setting == "auto")
