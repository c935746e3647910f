"""Combinations in which every two options' settings meet at least once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

Pair = frozenset[tuple[str, str]]


def _pairs(row: Mapping[str, str]) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def combinations(
    options: Mapping[str, Sequence[str]], never: Iterable[Pair] = ()
) -> list[dict[str, str]]:
    """Rows of one setting for each option, without the pairs in `never`.

    Greedy: a row begins with a pair that has not met, and each option then takes the setting that
    meets most such pairs.
    """
    never = set(never)
    left: set[Pair] = set()
    for (one, ones), (two, twos) in itertools.combinations(options.items(), 2):
        left |= {frozenset({(one, a), (two, b)}) for a in ones for b in twos}
    left -= never
    rows = []
    while left:
        row = dict(min(left, key=sorted))
        for name in [name for name in options if name not in row]:
            possible = [v for v in options[name] if not _pairs({**row, name: v}) & never]
            row[name] = max(possible, key=lambda v: len(_pairs({**row, name: v}) & left))
        left -= _pairs(row)
        rows.append({name: row[name] for name in options})
    return rows
