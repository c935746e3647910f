"""Tokens per second that a drafter is worth, from how its drafts fared and what steps cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from slipstream.core.ideal import geometric_acceptance, pearl_tokens

Placement = Literal["separate", "shared"]


@dataclass(frozen=True, slots=True)
class RunTally:
    """How far runs of drafts were accepted.

    Attributes:
        drafted: at i, the runs whose first i drafts were accepted and that had one more.
        accepted: at i, those of them whose draft at i was accepted, too.
    """

    drafted: tuple[int, ...] = ()
    accepted: tuple[int, ...] = ()

    @classmethod
    def of_run(cls, accepted: int, drafted: int) -> RunTally:
        """One run of `drafted` tokens, of which the first `accepted` were right."""
        seen = min(accepted + 1, drafted)
        return cls((1,) * seen, tuple(int(i < accepted) for i in range(seen)))

    def __add__(self, other: RunTally) -> RunTally:
        def added(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(a + b for a, b in zip_longest(left, right, fillvalue=0))

        return RunTally(added(self.drafted, other.drafted), added(self.accepted, other.accepted))

    @property
    def tokens(self) -> int:
        """Drafts that were compared."""
        return sum(self.drafted)

    @property
    def rate(self) -> float:
        """Probability that a draft is accepted, given those before it; 0 where there were none."""
        return sum(self.accepted) / self.tokens if self.tokens else 0.0

    @property
    def by_position(self) -> tuple[float, ...]:
        """The same for each place in a run."""
        return tuple(a / d for a, d in zip(self.accepted, self.drafted, strict=True))

    def mean_accepted(self, length: int) -> float:
        """Drafts accepted in the mean of a run of `length`; unseen places fare as all do."""
        known = self.by_position
        total, reached = 0.0, 1.0
        for place in range(length):
            reached *= known[place] if place < len(known) else self.rate
            total += reached
        return total


@dataclass(frozen=True, slots=True)
class Throughput:
    """The best draft length, and what it gives.

    Attributes:
        acceptance: of one draft, given those before it, at that length.
    """

    tokens_per_second: float
    window: int
    acceptance: float


def best_throughput(
    tally: RunTally,
    draft_seconds: float,
    verify_seconds: Callable[[int], float],
    *,
    placement: Placement = "separate",
    max_window: int = 16,
) -> Throughput:
    """The draft length with the most tokens per second.

    On a device of its own the drafter works while the verifier does: the tokens of a round of
    PEARL (arXiv 2408.11850) over the longer of g draft steps and one verify step. On a shared one
    they take turns: 1 + accepted tokens over the sum (Leviathan et al., arXiv 2211.17192).

    Args:
        draft_seconds: of one draft step.
        verify_seconds: of a verify step with so many rows; a run of g drafts has g + 1.
        max_window: longest draft length, at least 1.
    """

    def at(window: int) -> Throughput:
        accepted = tally.mean_accepted(window)
        acceptance = geometric_acceptance(accepted, window)
        drafting, verifying = window * draft_seconds, verify_seconds(window + 1)
        if placement == "shared":
            rate = (1.0 + accepted) / (drafting + verifying)
        else:
            rate = pearl_tokens(acceptance, window) / max(drafting, verifying)
        return Throughput(rate, window, acceptance)

    return max(
        (at(window) for window in range(1, max_window + 1)),
        key=lambda found: found.tokens_per_second,
    )
