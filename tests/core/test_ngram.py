"""The n-gram index against a search by hand, and what its guesses are said to be worth."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core import suffix_automaton
from slipstream.core.ngram import Guess, MatchRates, NgramProposer
from slipstream.core.suffix_automaton import Match, SuffixAutomaton

# Few different tokens, so that nearly everything repeats; and repeated pieces.
pieces = st.lists(st.integers(0, 3), max_size=6)
texts = st.one_of(
    st.lists(st.integers(0, 2), max_size=40),
    st.tuples(pieces, pieces, pieces, st.integers(1, 5)).map(lambda p: (p[0] + p[1]) * p[3] + p[2]),
)
tails = st.lists(st.integers(0, 4), max_size=10)


def longest_match(tokens: list[int], tail: list[int]) -> Match:
    """By trying every suffix at every place, the last place first."""
    whole = tokens + tail
    for length in range(len(whole), 0, -1):
        suffix = whole[-length:]
        for end in range(len(tokens) if tail else len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == suffix:
                return Match(length, end)
    return Match(0, 0)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(tokens=texts, tail=tails)
def test_like_a_search_by_hand(tokens, tail) -> None:
    """After every token, with and without a tail: the match is as long as any, and where it says;
    and a tail leaves nothing behind."""
    index = SuffixAutomaton()
    for count in range(len(tokens) + 1):
        so_far = tokens[:count]
        for pending in (tail, [], tail[:1]):
            match, expected = index.match(pending), longest_match(so_far, pending)
            assert match.length == expected.length
            if match.length:
                suffix = (so_far + pending)[-match.length :]
                assert so_far[match.end - match.length : match.end] == suffix
                assert match.end < count + len(pending)
        if count < len(tokens):
            index.extend((tokens[count],))
    assert index.tokens == tokens


@settings(deadline=None, max_examples=300, derandomize=True)
@given(tokens=texts, tail=tails)
def test_the_most_recent_of_all(tokens, tail) -> None:
    """With no bound on what is noted for each token, the occurrence found is the last one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_automaton, "_NOTED", 10**6)
        index = SuffixAutomaton(tokens)
        for pending in (tail, []):
            match = index.match(pending)
            if match.length:
                assert match == longest_match(tokens, pending)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(tokens=texts)
def test_linear_memory(tokens) -> None:
    """No more states and edges than the theory allows: 2 n and 3 n."""
    index = SuffixAutomaton(tokens)
    assert index.num_states <= 2 * len(tokens) + 1
    assert index.num_edges <= 3 * len(tokens) + 1


@settings(deadline=None, max_examples=300, derandomize=True)
@given(tokens=texts, tail=tails, most=st.integers(0, 12))
def test_guesses_are_what_followed(tokens, tail, most) -> None:
    """A guess is the continuation of the earlier occurrence, through the tail and itself."""
    proposer = NgramProposer(tokens)
    match = SuffixAutomaton(tokens).match(tail)
    guess = proposer.guess(tail, most)
    assert len(guess.tokens) == len(guess.chances) == (most if match.length else 0)
    text = tokens + tail
    for token in guess.tokens:
        text.append(text[match.end + len(text) - len(tokens) - len(tail)])
        assert token == text[-1]
    assert len(proposer) == len(tokens)


def test_a_repeated_phrase_goes_on() -> None:
    """What followed runs out at the end of the sequence: the guess repeats itself."""
    proposer = NgramProposer((9, 1, 2, 3, 1, 2, 3))
    assert proposer.guess((), 7).tokens == (1, 2, 3, 1, 2, 3, 1)
    assert proposer.guess((1, 2), 4).tokens == (3, 1, 2, 3)
    assert proposer.guess((8,), 4) == Guess()


def test_learns_from_the_text_alone() -> None:
    """Copying text raises the chances, text that breaks every match lowers them, both within
    tens of tokens, and whether anybody guessed or not; a prompt read teaches nothing."""
    phrase = [5, 6, 7, 8, 9, 10, 11, 12]
    proposer = NgramProposer(phrase * 4)
    before = proposer.guess((), 4).chances
    copying = NgramProposer(phrase * 4)
    copying.extend(phrase * 4)
    assert copying.guess((), 4).chances > before
    assert copying.guess((), 4).chances[3] > 0.8
    before = copying.guess((99, 5), 1)
    for i in range(30):  # every other token occurred before, and each time another one follows
        copying.extend((phrase[i % 8], 100 + i))
    after = copying.guess((99, 5), 1)
    assert before.match == after.match == 1
    assert before.chances[0] > after.chances[0]
    assert after.chances[0] < 0.05


def test_learns_from_verdicts() -> None:
    """Checked guesses count for the lengths that the match had reached, up to the first wrong."""
    proposer, rates = NgramProposer((1, 2, 1)), MatchRates()
    for _ in range(50):
        proposer.learn(1, guessed=4, accepted=2)
    (first, second, third) = NgramProposer((1, 2, 1)).guess((), 3).chances
    taught = proposer.guess((), 3).chances
    assert taught[0] > 0.9 > first
    assert taught[1] > 0.8 > second
    assert taught[2] < 0.2 < third + 0.2
    assert rates.rate(9) == MatchRates().rate(16), "the fourth guess was never looked at"
