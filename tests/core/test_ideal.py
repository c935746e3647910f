"""The closed form of overlapped drafting, and the acceptance probability put into it."""

from __future__ import annotations

import pytest

from slipstream.core.ideal import best_ideal, free_running_speedup, pearl_speedup, token_acceptance


@pytest.mark.parametrize(
    ("ratio", "acceptance", "speedup"),
    [(2, 0.8, 1.55), (2, 0.9, 1.74), (4, 0.8, 2.12), (4, 0.9, 2.76)],
)
def test_best_window_gives_the_known_figures(ratio, acceptance, speedup):
    """The formula gives the figures known for c = 2 and 4 at acceptance 0.8 and 0.9."""
    assert best_ideal(acceptance, ratio).speedup == pytest.approx(speedup, abs=0.006)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_perfect_drafts_reach_the_speed_of_the_drafter(ratio):
    """With every draft accepted, the ceiling is c; with none, plain decoding."""
    assert best_ideal(1.0, ratio).speedup == pytest.approx(ratio)
    assert best_ideal(0.0, ratio).speedup == pytest.approx(1.0)


def test_formula_agrees_with_a_simulation_of_its_rounds():
    """The closed form is the mean of a played-out run of pre- and post-verify rounds."""
    import random

    acceptance, window, ratio = 0.7, 3, 2.0
    generator = random.Random(5)
    tokens, rounds, post = 0, 200_000, False
    for _ in range(rounds):
        if not post:
            tokens += 1
            post = generator.random() < acceptance
            continue
        run = next((n for n in range(window) if generator.random() >= acceptance), window)
        tokens += window if run == window else run + 1
        post = run == window
    simulated = tokens / rounds * ratio / max(window, ratio)
    assert pearl_speedup(acceptance, ratio, window) == pytest.approx(simulated, rel=0.01)


def test_communication_costs_speed():
    """Exposed communication lengthens the round."""
    assert pearl_speedup(0.9, 4, 4, communication=1.0) == pytest.approx(
        pearl_speedup(0.9, 4, 4) * 4 / 5
    )


@pytest.mark.parametrize(
    "arguments",
    [(1.1, 2, 2), (-0.1, 2, 2), (0.5, 0, 2), (0.5, 2, 0), (float("nan"), 2, 2)],
)
def test_impossible_arguments_are_refused(arguments):
    """Values outside their ranges raise instead of giving a figure."""
    with pytest.raises(ValueError, match="must be"):
        pearl_speedup(*arguments)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9, 0.99])
def test_token_acceptance_inverts_the_expected_run(probability):
    """From the counts that a probability leads to, the probability comes back."""
    length, runs = 4, 10_000
    accepted = round(runs * sum(probability**n for n in range(1, length + 1)))
    found = token_acceptance(accepted, runs * length, runs)
    assert found == pytest.approx(probability, abs=1e-3)


def test_token_acceptance_at_the_ends():
    """Nothing accepted is 0, everything is 1, and single drafts give the plain rate."""
    assert token_acceptance(0, 8, 2) == pytest.approx(0.0, abs=1e-9)
    assert token_acceptance(8, 8, 2) == 1.0
    assert token_acceptance(3, 4, 4) == pytest.approx(0.75)


@pytest.mark.parametrize("counts", [(5, 4, 1), (0, 0, 0), (1, 4, 5), (-1, 4, 1)])
def test_impossible_counts_are_refused(counts):
    """Counts that no run can have raise."""
    with pytest.raises(ValueError, match="impossible"):
        token_acceptance(*counts)


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 0.97])
@pytest.mark.parametrize("ratio", [1, 2, 3, 6])
def test_free_running_is_pearl_at_whole_ratios(acceptance, ratio):
    """Without rounds and with a whole speed ratio the ideal is that of PEARL with window c."""
    free = free_running_speedup(acceptance, ratio, window=64)
    assert free == pytest.approx(pearl_speedup(acceptance, ratio, ratio))


def test_free_running_agrees_with_a_simulation():
    """Played out token by token, with a drafter whose draft under way survives the end of a step
    and a window that binds."""
    import random

    acceptance, ratio, window = 0.85, 2.6, 4
    generator = random.Random(11)
    tokens, steps = 0, 100_000
    made, committed = 0.0, 0
    for _ in range(steps):
        drafts, before = int(made) - committed, committed
        right = next((n for n in range(drafts + 1) if generator.random() >= acceptance), None)
        made = min(made + ratio, before + window)
        committed += (drafts if right is None else right) + 1
        tokens += committed - before
        if right is not None:
            made, committed = 0.0, 0
    expected = free_running_speedup(acceptance, ratio, window)
    assert tokens / steps == pytest.approx(expected, rel=0.01)
    assert expected < free_running_speedup(acceptance, ratio, 64)


def test_a_slow_drafter_loses_nothing():
    """Nobody waits for a drafter that is slower than the verifier."""
    assert free_running_speedup(0.9, 0.5, 8) == 1.0
    with pytest.raises(ValueError, match="window"):
        free_running_speedup(0.9, 2.0, 0)
