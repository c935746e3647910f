"""What overlapped drafting and verification could give at best, to judge the measured speed by."""

from __future__ import annotations

from dataclasses import dataclass

MAX_WINDOW = 64
# A run that goes on this long, or is this unlikely, changes no figure that is shown.
_MOST_TOKENS = 10_000
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, slots=True)
class Ideal:
    """The best window and the throughput relative to plain decoding that it gives."""

    window: int
    speedup: float


def pearl_tokens(acceptance: float, window: int) -> float:
    """Tokens that a round of PEARL commits in the mean (Liu et al., arXiv 2408.11850).

    With a the acceptance and g the window:

        E = g a^g + sum over 0 <= n < g of a^n (1-a) (n+1)      tokens of a post-verify round
        p = a / (a + 1 - a^g)                                   share of post-verify rounds
        tokens = 1 - p + p E

    Raises:
        ValueError: acceptance outside [0, 1], or window below 1.
    """
    _check(acceptance, 1.0, window)
    if acceptance == 0.0:
        return 1.0
    post_share = acceptance / (acceptance + 1.0 - acceptance**window)
    post_tokens = window * acceptance**window + sum(
        acceptance**n * (1.0 - acceptance) * (n + 1) for n in range(window)
    )
    return 1.0 - post_share + post_share * post_tokens


def pearl_speedup(
    acceptance: float, speed_ratio: float, window: int, *, communication: float = 0.0
) -> float:
    """Ideal throughput of PEARL relative to plain decoding (Liu et al., arXiv 2408.11850).

    With g the window, c the speed ratio, d the communication and n the tokens of a round:

        speedup = n c / (max(g, c) + d)

    Args:
        acceptance: probability that one draft token is accepted, given that those before it
            were; in [0, 1].
        speed_ratio: time of a verify step over that of a draft step, above 0.
        window: tokens drafted in a round, at least 1.
        communication: exposed communication of a round, in draft steps.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(acceptance, speed_ratio, window)
    if communication < 0.0:
        raise ValueError(f"communication must be at least 0, got {communication}")
    tokens = pearl_tokens(acceptance, window)
    return tokens * speed_ratio / (max(window, speed_ratio) + communication)


def best_ideal(acceptance: float, speed_ratio: float) -> Ideal:
    """The window of 1 to MAX_WINDOW with the highest speedup. Raises ValueError as above."""
    return max(
        (
            Ideal(window, pearl_speedup(acceptance, speed_ratio, window))
            for window in range(1, MAX_WINDOW + 1)
        ),
        key=lambda ideal: ideal.speedup,
    )


def free_running_speedup(acceptance: float, speed_ratio: float, window: int) -> float:
    """Ideal throughput, relative to plain decoding, where neither side ever waits for the other.

    PEARL's rounds last as long as the slower side, max(g, c). A free-running drafter has no
    rounds: a step takes what is there, and a draft under way when a step ends goes on. After a
    mismatch the first step has no drafts; the drafter has made c j tokens (but no more than
    `window` beyond the last commit) when step j begins. With V(j) the tokens committed by then if
    all is accepted, a step is reached with probability a^V(j), and

        speedup = (1 + a + a^2 + ...) / (a^V(0) + a^V(1) + ...),  V(0) = 0, V(j+1) = [c j] + 1.

    Where c is a whole number and the window does not bind, this is pearl_speedup at window c:
    free running changes nothing there. Just above a whole number it is better, since the rest of
    a draft is not thrown away. Just below one it is worse: the last draft of each step comes a
    little late, and it pays to wait for it. A drafter slower than the verifier (c < 1) never
    catches up, and nothing is lost by it.

    Args:
        acceptance, speed_ratio: as for `pearl_speedup`.
        window: most drafts ahead of the last commit, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check(acceptance, speed_ratio, window)
    if speed_ratio < 1.0:
        return 1.0
    made, committed, reached = 0.0, 0, 1.0
    tokens = steps = 0.0
    while reached > _NEGLIGIBLE and committed < _MOST_TOKENS:
        steps += reached
        before, committed = committed, int(made) + 1
        made = min(made + speed_ratio, before + window)
        for _ in range(before, committed):
            tokens += reached
            reached *= acceptance
    return tokens / steps


def _check(acceptance: float, speed_ratio: float, window: int) -> None:
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"acceptance must be in [0, 1], got {acceptance}")
    if not speed_ratio > 0.0 or window < 1:
        raise ValueError(
            f"speed_ratio must be above 0 and window at least 1, got {speed_ratio} and {window}"
        )


def token_acceptance(accepted: int, drafted: int, runs: int) -> float:
    """Per-token acceptance probability behind a measured acceptance rate.

    Tokens drafted after a mismatch count as rejected in accepted/drafted, whatever they are. A
    run of k draft tokens, each accepted with probability a given those before, has
    a + a^2 + ... + a^k accepted tokens in the mean; this solves for a, with k the mean length
    drafted/runs.

    Args:
        accepted, drafted: tokens over all runs, 0 <= accepted <= drafted.
        runs: verify steps with at least one draft token, 1 <= runs <= drafted.

    Raises:
        ValueError: the counts cannot be.
    """
    if not (0 <= accepted <= drafted and 1 <= runs <= drafted):
        raise ValueError(f"impossible counts: {accepted=}, {drafted=}, {runs=}")
    if accepted == drafted:
        return 1.0
    return geometric_acceptance(accepted / runs, drafted / runs)


def geometric_acceptance(accepted: float, length: float) -> float:
    """The a for which a run of `length` drafts has a + a^2 + ... = `accepted` in the mean.

    Args:
        accepted: in [0, length]; length: above 0, need not be whole.
    """
    if accepted >= length:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        expected = middle * (1.0 - middle**length) / (1.0 - middle)
        low, high = (middle, high) if expected < accepted else (low, middle)
    return (low + high) / 2
