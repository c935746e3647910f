"""Prefix identity: one name for the content of a token sequence.

A hash chain over token ids, extended by one token at a time and salted with the model's
fingerprint (and a tenant's salt, where given), so that a name can be neither forged nor probed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

HASH_BYTES = 16


def salted(fingerprint: str, cache_salt: str = "") -> str:
    """The salt of the chains of a model, and of those that share a cache salt where one is given.

    Prefixes of different salts have different names, whatever their tokens: nobody without the
    salt finds, or learns of, what was computed under it.
    """
    # A fingerprint has no zero in it, so no two pairs give the same salt.
    return f"{fingerprint}\0{cache_salt}" if cache_salt else fingerprint


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `length` tokens of a sequence, by the last link of their hash chain."""

    length: int
    hash: bytes


class PrefixChain:
    """The names of all prefixes of one growing sequence. One owner; not thread-safe.

    Args:
        salt: from `salted`.
        tokens: the sequence so far.
    """

    __slots__ = ("_links",)

    def __init__(self, salt: str, tokens: Iterable[int] = ()) -> None:
        self._links = [blake2b(salt.encode(), digest_size=HASH_BYTES).digest()]
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._links) - 1

    def extend(self, tokens: Iterable[int]) -> None:
        links = self._links
        for token in tokens:
            data = links[-1] + token.to_bytes(4, "little")
            links.append(blake2b(data, digest_size=HASH_BYTES).digest())

    def extended(self, tokens: Iterable[int]) -> PrefixChain:
        """A chain for this sequence followed by `tokens`; this one stays as it is."""
        chain = PrefixChain.__new__(PrefixChain)
        chain._links = self._links.copy()
        chain.extend(tokens)
        return chain

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self)
        del self._links[length + 1 :]

    def at(self, length: int) -> Prefix:
        """The prefix of the first `length` tokens; `length` in [0, len(self)]."""
        return Prefix(length, self._links[length])

    def names(self, prefix: Prefix) -> bool:
        """Whether `prefix` is a prefix of this sequence."""
        return 0 <= prefix.length <= len(self) and self._links[prefix.length] == prefix.hash
