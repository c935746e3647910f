"""best_lengths beside its formula, written out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from verifier_service.policy import Target, best_lengths

chance = st.floats(0.02, 0.98)


def _by_the_formula(
    step: float,
    row: float,
    extra: float,
    runs,
    latency: float,
    each: float,
    stepping: float,
    sequences: int,
    most_rows: int,
) -> float:
    """The highest rate of all numbers of rows, the likeliest drafts first."""

    def beside(rows: int) -> float:
        return extra * (step + row * rows)

    def wait(drafts: float) -> float:
        return latency + each * drafts if drafts > 0 else 0.0

    plain = sequences / min(step + row * sequences, beside(sequences))
    best = plain * 1.02
    drafts = sorted((-alive, j, i) for i, run in enumerate(runs) for j, alive in enumerate(run))
    for k in range(1, min(len(drafts), most_rows - sequences) + 1):
        chosen = [[j for _, j, i in drafts[:k] if i == which] for which in range(len(runs))]
        lengths = [len(mine) for mine in chosen]
        longest = max(lengths)
        ends = [run[m - 1] for run, m in zip(runs, lengths, strict=True) if m]
        alive = sum(ends) / len(ends)
        tokens = sequences + sum(sum(run[:m]) for run, m in zip(runs, lengths, strict=True))
        seconds = beside(sequences + k)
        ahead = max(0.0, seconds / stepping - 1.0) if stepping else 0.0
        waited = alive * wait(max(0.0, longest - ahead)) + (1.0 - alive) * wait(longest)
        best = max(best, tokens / (seconds + waited))
    return best if best > plain * 1.02 else plain


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    rates=st.lists(st.lists(chance, min_size=1, max_size=5), min_size=1, max_size=4),
    others=st.integers(0, 3),
    row=st.floats(0.0001, 0.01),
    extra=st.floats(0.9, 1.5),
    latency=st.floats(0.0, 0.01),
    each=st.floats(0.0005, 0.02),
    stepping=st.sampled_from([0.0, 0.002, 0.02]),
    room=st.integers(0, 8),
)
def test_best_lengths(rates, others, row, extra, latency, each, stepping, room) -> None:
    """The rate is the formula's highest, no step has too many rows, and where drafts are not worth
    two percent nobody has any."""
    runs = []
    for run in rates:
        alive = 1.0
        runs.append([alive := alive * rate for rate in run])
    sequences = len(runs) + others
    target: Target = best_lengths(
        quiet=lambda rows: 0.02 + row * rows,
        beside=lambda rows: extra * (0.02 + row * rows),
        survivals=runs,
        waiting=lambda drafts: latency + each * drafts if drafts > 0 else 0.0,
        stepping=stepping,
        sequences=sequences,
        most_rows=sequences + room,
    )
    expected = _by_the_formula(
        0.02, row, extra, runs, latency, each, stepping, sequences, sequences + room
    )
    assert abs(target.rate - expected) < 1e-6 * expected
    assert sum(target.lengths) <= room
    assert (target.length == 0) == (target.rate == target.plain)
