"""Runs of tokens beside one another."""

from __future__ import annotations

from collections.abc import Iterable


def agreement(one: Iterable[int], other: Iterable[int]) -> int:
    """How many tokens two runs have in common from their beginning on."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
