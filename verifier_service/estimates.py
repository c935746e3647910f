"""What the length policy knows, all measured: step times, acceptance, how fast drafts come."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

# Share of a new measurement in a moving average: an old one has faded after some tens of steps.
_NEW = 0.1
# The same for what sets one row count apart, and the power by which that fades to nothing.
_NEW_OWN, _KEPT_OWN = 0.05, 0.99
# Draft positions that are told apart; later ones count as the last.
POSITIONS = 8
# Observations that an estimate starts with, and how many count at most: few enough that a change
# of text shows within tens of steps.
_PRIOR_WEIGHT = 3.0
_MEMORY = 24.0
_PROBE_WEIGHT = 1.0


def faded(before: float, new: float, share: float = _NEW) -> float:
    """An exponential moving average; `before` is 0 where there is none yet."""
    return before + share * (new - before) if before else new


class StepCost:
    """Seconds of a verifier's step as a function of its rows.

    The shape is probed when the model is loaded; service corrects it as a whole (context, company
    and clock change all of it) and, where a row count was measured, by how that differs from the
    whole: so a count that is no longer seen, such as the one row of a plain step, ages with the
    rest.

    Args:
        probe: seconds by number of rows, at least one entry.
    """

    def __init__(self, probe: Mapping[int, float]) -> None:
        self._rows = sorted(probe)
        # Never less for more rows: a probe is a noisy thing.
        self._seconds: list[float] = []
        for rows in self._rows:
            self._seconds.append(max([probe[rows], *self._seconds[-1:]]))
        self._ratio = 1.0
        # By row count, relative to the ratio of all.
        self._own: dict[int, float] = {}

    def probed(self, rows: int) -> float:
        """By interpolation; beyond the last probe by its slope."""
        at = bisect_left(self._rows, rows)
        if at < len(self._rows) and self._rows[at] == rows:
            return self._seconds[at]
        if len(self._rows) == 1:
            return self._seconds[0] * rows / self._rows[0]
        at = min(max(at, 1), len(self._rows) - 1)
        low, high = self._rows[at - 1], self._rows[at]
        slope = (self._seconds[at] - self._seconds[at - 1]) / (high - low)
        return max(self._seconds[at - 1] + slope * (rows - low), self._seconds[0])

    def observe(self, rows: int, seconds: float) -> None:
        # One stalled step (a collector, a neighbour) is not what steps cost.
        ratio = min(seconds / self.probed(rows), 4.0 * self._ratio)
        own = self._own.get(rows, 1.0)
        # The whole moves by what this count's usual difference does not explain, and that
        # difference slowly: of a minute in which all steps are slow it must learn nothing.
        self._ratio = faded(self._ratio, ratio / own)
        self._own[rows] = faded(own, ratio / self._ratio, _NEW_OWN)
        self._own = {count: difference**_KEPT_OWN for count, difference in self._own.items()}

    def whole(self, rows: int) -> float:
        """Without what sets this row count apart: never less for more rows."""
        return self.probed(rows) * self._ratio

    def __call__(self, rows: int) -> float:
        return self.whole(rows) * self._own.get(rows, 1.0)


class Acceptance:
    """How likely the draft at each position of a run is right, given that those before it were.

    Args:
        prior: where nothing was observed; the estimate of all sequences for a new one.
    """

    def __init__(self, prior: Acceptance | None = None) -> None:
        # The survival, as far as anybody asked for it since the last record.
        self._known: list[float] = []
        if prior is None:
            # Nothing is known of the later positions: they are like the first.
            self._tries = [_PRIOR_WEIGHT, *[0.0] * (POSITIONS - 1)]
            self._hits = [0.8 * tries for tries in self._tries]
        else:
            self._tries = [min(_PRIOR_WEIGHT, tries) for tries in prior.tries()]
            self._hits = [t * r for t, r in zip(self._tries, prior.rates(), strict=True)]

    def record(self, drafted: int, accepted: int) -> None:
        """Of a run of `drafted`, the first `accepted` were right; the next one was not."""
        self._known = []
        for i in range(min(drafted, accepted + 1)):
            at = min(i, POSITIONS - 1)
            keep = 1.0 - 1.0 / _MEMORY
            self._tries[at] = self._tries[at] * keep + 1.0
            self._hits[at] = self._hits[at] * keep + (i < accepted)

    def tries(self) -> list[float]:
        """Runs that reached each position, old ones counting less."""
        return list(self._tries)

    def forget(self) -> None:
        """Keeps the estimates, and lets the next few runs outweigh them."""
        self._known = []
        for at, tries in enumerate(self._tries):
            share = min(1.0, _PROBE_WEIGHT / max(tries, _PROBE_WEIGHT))
            self._tries[at], self._hits[at] = tries * share, self._hits[at] * share

    def rates(self) -> list[float]:
        """By position. Few runs reach a late position, so each leans on the one before it."""
        rates: list[float] = []
        for tries, hits in zip(self._tries, self._hits, strict=True):
            lean = rates[-1] if rates else hits / tries
            rates.append((hits + _PRIOR_WEIGHT * lean) / (tries + _PRIOR_WEIGHT))
        return rates

    def survival(self, most: int) -> list[float]:
        """Probability that the first 1, 2, ... `most` drafts of a run are all right."""
        known = self._known
        if len(known) < most:
            rates = self.rates()
            for i in range(len(known), most):
                known.append(rates[min(i, POSITIONS - 1)] * (known[-1] if known else 1.0))
        return known[:most]


class Arrival:
    """How drafts arrive, as the verifier sees it.

    A wait for m drafts takes `latency` + m `waiting` seconds: the way to the drafter and back, and
    what each draft takes. Both are a least-squares fit of the waits so far, old ones fading, drawn
    towards what the drafter says of its own speed: while all runs have the same length, only their
    sum can be measured.

    Attributes:
        stepping: seconds from draft to draft while the verifier computes; 0 before the first
            measurement.
    """

    def __init__(self) -> None:
        self.stepping = 0.0
        self._said = 0.0
        self.forget()

    def forget(self) -> None:
        """Gives a drafter that was slow the chance to show that it no longer is."""
        # Decayed sums over the waits: how many, m, seconds, m m and m seconds.
        self._sums: tuple[float, ...] = (0.0,) * 5

    @property
    def measured(self) -> bool:
        return self._sums[0] > 0.0

    @property
    def waiting(self) -> float:
        """Seconds for each draft while the verifier waits."""
        count, m, t, mm, mt = self._sums
        if not count:
            return self._said
        covariance, variance = mt - m * t / count, mm - m * m / count
        prior = min(self._said or t / m, t / m)
        slope = (covariance + _PRIOR_WEIGHT * prior) / (variance + _PRIOR_WEIGHT)
        # No draft takes longer than a wait, or less than none.
        return min(max(slope, 0.0), t / m)

    @property
    def latency(self) -> float:
        """Seconds of a wait beyond what its drafts take."""
        count, m, t, _, _ = self._sums
        return (t - m * self.waiting) / count if count else 0.0

    def wait(self, drafts: float) -> float:
        """Seconds to expect for `drafts` more."""
        return self.latency + drafts * self.waiting if drafts > 0 else 0.0

    def said(self, seconds: float) -> None:
        """What the drafter takes for a draft, by its own account; 0: it has none yet."""
        self._said = seconds

    def waited(self, seconds: float, drafts: float) -> None:
        """`drafts` came in `seconds` of waiting; with none, at least that long is missing."""
        expected = self.wait(max(1.0, drafts))
        if not drafts and seconds <= expected:
            return
        if self.measured:
            # One stall is not what a draft takes.
            seconds = min(seconds, 3.0 * expected)
        m = max(1.0, drafts)
        new = (1.0, m, seconds, m * m, m * seconds)
        self._sums = tuple((1.0 - _NEW) * s + n for s, n in zip(self._sums, new, strict=True))

    def stepped(self, seconds: float, drafts: float) -> None:
        """`drafts` came during a step; those of a drafter that had paused say nothing."""
        self.stepping = faded(self.stepping, seconds / drafts if drafts else 4.0 * seconds)
