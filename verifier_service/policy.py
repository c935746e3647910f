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
        plain: what to expect without drafts.
    """

    length: int = 0
    rate: float = 0.0
    plain: float = 0.0

    @property
    def worth(self) -> float:
        """With such drafts over without; 1 where nothing is known yet."""
        return self.rate / self.plain if self.plain else 1.0


def best_length(
    *,
    quiet: Cost,
    beside: Cost,
    survival: Sequence[float],
    waiting: Callable[[float], float],
    stepping: float,
    sequences: int,
    drafting: int,
) -> Target:
    """The run length with the highest goodput in steady state.

    A cycle is one step and the wait for its drafts. While a step runs, the drafter makes
    step / stepping more of them (none where it shares the device), of which the bonus token uses
    one up. After a mismatch it starts over from nothing. So, with m drafts for d of n sequences
    and s[i] the probability that the first i are right:

        step  = beside(n + d m)
        wait  = s[m] w(m - max(0, step / stepping - 1)) + (1 - s[m]) w(m)
        rate  = (n + d (s[1] + ... + s[m])) / (step + wait)

    Args:
        quiet, beside: step seconds by rows, with the drafter silent and at work.
        survival: s[1] to s[most].
        waiting: w, seconds of a wait by the drafts that are missing; 0 for none.
        stepping: seconds from draft to draft while the verifier computes.
        sequences, drafting: n, those that decode; d, those of them with a drafter.
    """
    plain = sequences / quiet(sequences)
    best, best_rate = Target(0, plain, plain), plain * _MARGIN
    expected = float(sequences)
    for length, alive in enumerate(survival, start=1):
        expected += drafting * alive
        step = beside(sequences + drafting * length)
        ahead = max(0.0, step / stepping - 1.0) if stepping else 0.0
        wait = alive * waiting(max(0.0, length - ahead)) + (1.0 - alive) * waiting(length)
        rate = expected / (step + wait)
        if rate > best_rate:
            best, best_rate = Target(length, rate, plain), rate
    return best
