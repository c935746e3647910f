"""What could be verified in the next step: a drafter's drafts, and n-gram guesses behind them.

Guesses cost no forward pass of their own. Without a drafter they are all there is; with one they
lengthen its runs where the text copies what was there before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifier_service.generation import Generation

Ngram = Literal["off", "on", "auto"]
# How much of a long prompt is read into the index before one step: about 2 ms.
_READ_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Run:
    """Candidates of one sequence for the next step.

    Attributes:
        tokens: in order; the first `drafted` are the drafter's, the others guesses.
        chances: of each, the probability that it and all before it are right; never rising.
    """

    tokens: tuple[int, ...]
    chances: tuple[float, ...]
    drafted: int


def candidates(generation: Generation, most: int, ngram: Ngram) -> Run:
    """At most `most` candidates of a decoding sequence.

    Args:
        ngram: on counts guesses as certain, so that they always get their rows; auto goes by how
            often guesses after as long a match have been right.
    """
    drafts = generation.drafts(most)
    chances = generation.acceptance.survival(len(drafts))
    room = min(most, generation.room) - len(drafts)
    if ngram == "off" or room <= 0 or not generation.request.speculative or not _read(generation):
        return Run(drafts, tuple(chances), len(drafts))
    guess = generation.ngram.guess(drafts, room)
    last = chances[-1] if chances else 1.0
    factors = [1.0] * len(guess.tokens) if ngram == "on" else guess.chances
    chances += [last * factor for factor in factors]
    return Run((*drafts, *guess.tokens), tuple(chances), len(drafts))


def _read(generation: Generation) -> bool:
    """Extends the index by what was committed; whether it holds all of that then."""
    sequence, index = generation.sequence, generation.ngram
    start, prompt = len(index), sequence.num_prompt
    end = min(len(sequence), start + _READ_AT_ONCE)
    index.read(sequence.tokens[start : min(end, prompt)])
    # Of its own output it also learns how often guesses would have been right.
    index.extend(sequence.tokens[max(start, prompt) : end])
    return end == len(sequence)
