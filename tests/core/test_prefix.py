"""Prefix identity: a name is a function of salt and tokens, and of nothing else."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from slipstream.core.prefix import HASH_BYTES, Prefix, PrefixChain, salted

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=20)


@given(TOKENS, TOKENS, st.text(max_size=8))
def test_name_does_not_depend_on_how_the_tokens_came(
    head: list[int], tail: list[int], salt: str
) -> None:
    """All at once, one by one, or by `extended`: the same tokens have the same names."""
    at_once = PrefixChain(salt, head + tail)
    one_by_one = PrefixChain(salt)
    for token in head + tail:
        one_by_one.extend([token])
    base = PrefixChain(salt, head)
    extended = base.extended(tail)
    assert len(base) == len(head)
    assert len(at_once) == len(head) + len(tail)
    for length in range(len(at_once) + 1):
        assert at_once.at(length) == one_by_one.at(length) == extended.at(length)
        assert len(at_once.at(length).hash) == HASH_BYTES


@given(TOKENS, TOKENS, st.data())
def test_truncate_then_extend_is_a_fresh_chain(
    tokens: list[int], tail: list[int], data: st.DataObject
) -> None:
    """After a rollback and other tokens nothing of what was rolled back is left in a name."""
    length = data.draw(st.integers(0, len(tokens)))
    chain = PrefixChain("model", tokens)
    chain.truncate(length)
    assert len(chain) == length
    chain.extend(tail)
    fresh = PrefixChain("model", tokens[:length] + tail)
    assert [chain.at(i) for i in range(len(chain) + 1)] == [
        fresh.at(i) for i in range(len(fresh) + 1)
    ]


@given(TOKENS.filter(bool), st.data())
def test_another_token_changes_every_later_name(tokens: list[int], data: st.DataObject) -> None:
    """One changed token leaves the names before it alone and changes all from it on."""
    index = data.draw(st.integers(0, len(tokens) - 1))
    other = data.draw(st.integers(0, 2**32 - 1))
    assume(other != tokens[index])
    mine, theirs = PrefixChain("m", tokens), PrefixChain("m", tokens)
    theirs.truncate(index)
    theirs.extend([other, *tokens[index + 1 :]])
    for length in range(len(tokens) + 1):
        assert mine.names(theirs.at(length)) is (length <= index)


@given(TOKENS, st.text(max_size=8), st.text(max_size=8))
def test_another_salt_changes_every_name(tokens: list[int], salt: str, other: str) -> None:
    """Two models or tenants never share a name, not even that of the empty prefix."""
    assume(salt != other)
    mine, theirs = PrefixChain(salt, tokens), PrefixChain(other, tokens)
    assert not any(mine.names(theirs.at(i)) for i in range(len(tokens) + 1))


@given(TOKENS)
def test_names_of_impossible_lengths_are_refused(tokens: list[int]) -> None:
    """A length below zero or beyond the sequence, or a wrong length for a hash, is no prefix."""
    chain = PrefixChain("m", tokens)
    last = chain.at(len(tokens))
    assert chain.names(last)
    assert not chain.names(Prefix(len(tokens) + 1, last.hash))
    assert not chain.names(Prefix(-1, last.hash))
    assert not chain.names(Prefix(len(tokens), b""))
    if tokens:
        assert not chain.names(Prefix(len(tokens) - 1, last.hash))


PAIRS = st.tuples(st.text("0123456789abcdef", min_size=1, max_size=4), st.text(max_size=4))


@given(PAIRS, PAIRS)
def test_no_two_pairs_of_model_and_cache_salt_give_one_salt(
    mine: tuple[str, str], theirs: tuple[str, str]
) -> None:
    """Neither side can be chosen so that it runs over into the other."""
    assert (salted(*mine) == salted(*theirs)) is (mine == theirs)
    assert salted(mine[0]) == mine[0]
