"""N-gram guesses (prompt lookup): what followed when the sequence's end occurred before.

They cost no forward pass, and nothing of a sequence's tokens depends on them: like any draft, a
guess counts only where it equals the token that the sampling rule draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slipstream.core.suffix_automaton import Match, SuffixAutomaton

# Where nothing is known of a sequence: how often the token behind a match is the next one, for
# matches of 1, 2, 3-4, 5-8, 9-16 and more tokens; rounded from the answers to the bench's prompts.
_PRIOR = (0.15, 0.4, 0.65, 0.8, 0.9, 0.95)
_PRIOR_WEIGHT = 4
# Observations that a rate looks back over: it follows a change of the text within tens of tokens.
_MEMORY = 20


class MatchRates:
    """How often a match predicts the next token, by its length: moving averages.

    A guess that is right makes the match one token longer, so the same rates serve the first
    guess and all that follow it.
    """

    __slots__ = ("_counts", "_rates")

    def __init__(self) -> None:
        self._rates = list(_PRIOR)
        self._counts = [_PRIOR_WEIGHT] * len(_PRIOR)

    @staticmethod
    def _bucket(length: int) -> int:
        return min((length - 1).bit_length(), len(_PRIOR) - 1)

    def rate(self, length: int) -> float:
        """Probability that the token behind a match of `length` >= 1 tokens comes next."""
        return self._rates[self._bucket(length)]

    def observe(self, length: int, right: bool) -> None:
        bucket = self._bucket(length)
        self._counts[bucket] = count = min(self._counts[bucket] + 1, _MEMORY)
        self._rates[bucket] += (right - self._rates[bucket]) / count


@dataclass(frozen=True, slots=True)
class Guess:
    """What may come next.

    Attributes:
        tokens: in order; empty where the end never occurred before.
        match: length of the match that they follow.
        chances: chances[i] is the probability that tokens[: i + 1] are all right, as measured.
    """

    tokens: tuple[int, ...] = ()
    match: int = 0
    chances: tuple[float, ...] = ()


class NgramProposer:
    """Guesses for one growing sequence. One owner; not thread-safe.

    Args:
        tokens: the sequence so far, of which nothing is learned about how guesses fare.
    """

    __slots__ = ("_index", "_rates")

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._index = SuffixAutomaton(tokens)
        self._rates = MatchRates()

    def __len__(self) -> int:
        return len(self._index)

    def read(self, tokens: Iterable[int]) -> None:
        """Appends tokens that nobody would have guessed at: those of a prompt."""
        self._index.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends tokens, and learns how guesses would have fared, whether any were made or not."""
        index, rates = self._index, self._rates
        for token in tokens:
            match = index.match()
            if match.length:
                rates.observe(match.length, index.tokens[match.end] == token)
            index.extend((token,))

    def guess(self, tail: Sequence[int], most: int) -> Guess:
        """Up to `most` tokens that may follow the sequence and `tail`, which is not appended.

        Where the earlier occurrence is so near that what followed it runs out, the guess goes on
        with itself: a repeated phrase is repeated again.
        """
        match = self._index.match(tail)
        if not match.length or most <= 0:
            return Guess()
        tokens = self._following(match, tail, most)
        return Guess(tokens, match.length, self._chances(match.length, len(tokens)))

    def learn(self, match: int, guessed: int, accepted: int) -> None:
        """Of `guessed` tokens behind a match of `match`, the first `accepted` were right.

        For guesses at what is never appended; of what is, `extend` learns by itself.
        """
        for i in range(min(guessed, accepted + 1)):
            self._rates.observe(match + i, i < accepted)

    def _following(self, match: Match, tail: Sequence[int], most: int) -> tuple[int, ...]:
        tokens = self._index.tokens
        found = tokens[match.end : match.end + most]
        if len(found) < most:
            text = [*tokens[match.end :], *tail]
            period = len(text)
            found = [text[i % period] for i in range(most)]
        return tuple(found)

    def _chances(self, length: int, count: int) -> tuple[float, ...]:
        chances, chance = [], 1.0
        for i in range(count):
            chance *= self._rates.rate(length + i)
            chances.append(chance)
        return tuple(chances)
