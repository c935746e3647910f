"""The length policy's decisions, as functions of measured quantities.

Goodput is expected tokens per second (SmartSpec, arXiv 2406.14066). Nothing here has state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Drafts must promise that much more than none: estimates are noisy, and none is always safe.
_MARGIN = 1.02

Cost = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Target:
    """How many drafts each sequence should have in a step, and the tokens per second to expect.

    Attributes:
        lengths: of each sequence that has a drafter, in order.
        plain: tokens per second to expect without drafts.
    """

    lengths: tuple[int, ...] = ()
    rate: float = 0.0
    plain: float = 0.0

    @property
    def length(self) -> int:
        """Of the longest run."""
        return max(self.lengths, default=0)

    @property
    def worth(self) -> float:
        """With such drafts over without; 1 where nothing is known yet."""
        return self.rate / self.plain if self.plain else 1.0


def best_lengths(
    *,
    quiet: Cost,
    beside: Cost,
    survivals: Sequence[Sequence[float]],
    waiting: Callable[[float], float],
    stepping: float,
    sequences: int,
    most_rows: int,
) -> Target:
    """The run length of each sequence with the highest goodput of all in steady state.

    A cycle is one step and the wait for its drafts. Rows go where they are likeliest to become
    tokens: with k of them, sequence i has its m[i] likeliest drafts, and the longest run has m.
    While a step runs, the drafter makes step / stepping more for each (none where it shares the
    device), of which the bonus token uses one up. After a mismatch it starts over from nothing.
    So, with s[i][j] the probability that the first j drafts of sequence i are right, and a the
    mean of s[i][m[i]] over those with drafts:

        step  = beside(n + k)
        wait  = a w(m - max(0, step / stepping - 1)) + (1 - a) w(m)
        rate  = (n + sum of all s[i][1] to s[i][m[i]]) / (step + wait)

    Args:
        quiet, beside: step seconds by rows, with the drafter silent and at work.
        survivals: s[i], of each sequence that has a drafter.
        waiting: w, seconds of a wait by the drafts that are missing; 0 for none.
        stepping: seconds from draft to draft while the verifier computes.
        sequences: n, those that decode.
        most_rows: of a step.
    """
    # No drafter at work makes a step faster; where the two estimates say so, one of them is stale.
    plain = sequences / min(quiet(sequences), beside(sequences))
    lengths = [0] * len(survivals)
    best, best_rate = Target(tuple(lengths), plain, plain), plain * _MARGIN
    # A later draft is never likelier than the one before it, so a sort keeps runs in order.
    likeliest = sorted(
        ((-alive, j, i) for i, run in enumerate(survivals) for j, alive in enumerate(run))
    )[: max(0, most_rows - sequences)]
    expected, longest, with_drafts, ends = float(sequences), 0, 0, 0.0
    for rows, (minus, j, i) in enumerate(likeliest, start=1):
        expected -= minus
        with_drafts += j == 0
        ends += survivals[i][j] - (survivals[i][j - 1] if j else 0.0)
        lengths[i] = j + 1
        longest = max(longest, j + 1)
        step = beside(sequences + rows)
        ahead = max(0.0, step / stepping - 1.0) if stepping else 0.0
        alive = ends / with_drafts
        wait = alive * waiting(max(0.0, longest - ahead)) + (1.0 - alive) * waiting(longest)
        rate = expected / (step + wait)
        if rate > best_rate:
            best, best_rate = Target(tuple(lengths), rate, plain), rate
    return best
