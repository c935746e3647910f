"""Which guesses get rows in a forward pass: those that raise its expected tokens per second.

Goodput, as in SmartSpec (arXiv 2406.14066). Both services decide by it: the verifier on drafts, the
drafter on n-gram guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def share_rows(
    chances: Sequence[Sequence[float]], cost: Callable[[int], float], most_rows: int
) -> list[int]:
    """How many of its pending drafts each sequence gets in a step, beside one row of its own.

    Rows go where they are most likely to become tokens, as long as that raises the expected
    tokens per second of the step.

    Args:
        chances: of each sequence, the probability that its first 1, 2, ... drafts are all right.
        cost: step seconds by rows.
        most_rows: most rows of the step.

    Returns:
        Drafts for each sequence, in order.
    """
    count = len(chances)
    # A later draft is never likelier than the one before it, so a sort keeps runs in order.
    candidates = sorted(
        ((alive, which) for which, run in enumerate(chances) for alive in run), reverse=True
    )[: max(0, most_rows - count)]
    taken, best_taken = 0, 0
    expected = float(count)
    best_rate = expected / cost(count)
    for taken, (alive, _) in enumerate(candidates, start=1):
        expected += alive
        rate = expected / cost(count + taken)
        # Some rows are free only together: cost is flat up to a border of a kernel's tile.
        if rate > best_rate:
            best_taken, best_rate = taken, rate
    lengths = [0] * count
    for _, which in candidates[:best_taken]:
        lengths[which] += 1
    return lengths
