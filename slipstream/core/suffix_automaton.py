"""A suffix automaton over token ids: where did the end of a sequence occur before?

The smallest automaton that accepts all suffixes of a string, built online (Blumer et al., "The
smallest automaton recognizing the subwords of a text", TCS 1985): at most 2 n states and 3 n
edges for n tokens, amortised constant time for each token appended.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# How many of the repeated suffixes, longest first, are noted to have just occurred. In text the
# path of suffix links seldom is longer; in periodic sequences it grows without bound.
_NOTED = 8


@dataclass(frozen=True, slots=True)
class Match:
    """The longest suffix that occurred before.

    Attributes:
        length: in tokens, 0 where there is none.
        end: how many tokens come before what followed the earlier occurrence.
    """

    length: int
    end: int


class SuffixAutomaton:
    """An index of one growing sequence. One owner; not thread-safe.

    State 0 is the empty string. A state's strings end at the same places. Most states have one
    edge, which is in two arrays; only those with more have a dict, for the others.

    Attributes:
        tokens: the sequence; not to be changed from outside.
    """

    __slots__ = (
        "_branches", "_earlier", "_end", "_last", "_length", "_link", "_target", "_token", "tokens",
    )  # fmt: skip

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._length = array("i", [0])  # of the state's longest string
        self._link = array("i", [-1])  # to the state of the longest suffix that ends elsewhere too
        self._end = array("i", [0])  # behind an occurrence, as recent as is known
        self._token = array("i", [-1])
        self._target = array("i", [-1])
        self._branches: dict[int, dict[int, int]] = {}
        self._last = 0
        self._earlier = 0
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_states(self) -> int:
        return len(self._length)

    @property
    def num_edges(self) -> int:
        first = sum(token >= 0 for token in self._token)
        return first + sum(len(branches) for branches in self._branches.values())

    def extend(self, tokens: Iterable[int]) -> None:
        """Appends token ids, each in [0, 2**31)."""
        for token in tokens:
            self._append(token)

    def match(self, tail: Sequence[int] = ()) -> Match:
        """The longest suffix of the sequence followed by `tail` that occurred before.

        Occurrences that reach into `tail` do not count. Of several the most recent one is found,
        but for suffixes that have lately been part of many longer repeated ones. The index stays
        as it is. Takes constant time without a tail, amortised constant time for each of its
        tokens.
        """
        if not tail:
            state = self._link[self._last] if self._last else 0
            return Match(self._length[state], self._earlier)
        state, length = self._last, len(self.tokens)
        for token in tail:
            target = self._next(state, token)
            while target < 0 and state:
                state = self._link[state]
                length = self._length[state]
                target = self._next(state, token)
            if target >= 0:
                state, length = target, length + 1
        return Match(length, self._end[state])

    def _append(self, token: int) -> None:
        length, link = self._length, self._link
        self.tokens.append(token)
        state = self._last
        current = self._add(length[state] + 1, len(self.tokens))
        target = -1
        while state >= 0 and (target := self._next(state, token)) < 0:
            self._connect(state, token, current)
            state = link[state]
        if state < 0:
            parent = 0
        elif length[target] == length[state] + 1:
            parent = target
        else:
            parent = self._split(state, token, target)
        link[current] = parent
        self._last = current
        self._note(parent)

    def _note(self, state: int) -> None:
        """Notes that the suffixes from this state's on have occurred at the end."""
        self._earlier, now = self._end[state], len(self.tokens)
        for _ in range(_NOTED):
            if state <= 0:
                return
            self._end[state] = now
            state = self._link[state]

    def _split(self, state: int, token: int, target: int) -> int:
        """A state of its own for the shorter strings of `target`, which now end here as well."""
        clone = self._add(self._length[state] + 1, self._end[target])
        self._token[clone], self._target[clone] = self._token[target], self._target[target]
        if target in self._branches:
            self._branches[clone] = self._branches[target].copy()
        self._link[clone], self._link[target] = self._link[target], clone
        while state >= 0 and self._next(state, token) == target:
            self._connect(state, token, clone)
            state = self._link[state]
        return clone

    def _add(self, length: int, end: int) -> int:
        self._length.append(length)
        self._end.append(end)
        self._link.append(0)
        self._token.append(-1)
        self._target.append(-1)
        return len(self._length) - 1

    def _next(self, state: int, token: int) -> int:
        """Where the edge leads; -1 where there is none."""
        if self._token[state] == token:
            return self._target[state]
        branches = self._branches.get(state)
        return branches.get(token, -1) if branches else -1

    def _connect(self, state: int, token: int, target: int) -> None:
        if self._token[state] in {-1, token}:
            self._token[state], self._target[state] = token, target
        else:
            self._branches.setdefault(state, {})[token] = target
