"""Draws have the distribution that the filters leave, and successive draws are independent.

Seeds are fixed, so a run never flickers; with fresh ones a right sampler would fail each check
with probability ALARM. The last tests plant faults that the same checks must see.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from slipstream.core.noise import uniform
from slipstream.core.params import SamplingParams
from slipstream.core.sampling import Logits, TokenCounts, sample
from tests.core.slow_rule import kept, penalized, probabilities

# At most 20 checks are made of right samplers: the chance of a false alarm in any is 1e-6.
ALARM = 5e-8
VOCAB = 24
LOGITS = np.random.default_rng(11).normal(0, 1.5, VOCAB).astype(np.float32)
Sampler = Callable[[Logits, SamplingParams, TokenCounts, int], int]
KEYS = {
    "one seed, many positions": [(5, i) for i in range(30_000)],
    "one position, many seeds": [(i, 17) for i in range(30_000)],
    "seeds and positions": [(i // 50 * 7919, i % 50) for i in range(30_000)],
}
FILTERS = {
    "plain": SamplingParams(),
    "warm": SamplingParams(temperature=1.7),
    "top-k": SamplingParams(top_k=5),
    "top-p": SamplingParams(top_p=0.8),
    "min-p": SamplingParams(temperature=1.3, min_p=0.1),
    "all, with penalties": SamplingParams(
        temperature=1.2,
        top_k=12,
        top_p=0.95,
        min_p=0.02,
        presence_penalty=0.7,
        frequency_penalty=0.4,
        repetition_penalty=1.3,
        logit_bias={3: 1.5, 8: -2.0},
    ),
}
PROMPT, OUTPUT = (1, 2, 2, 9), (9, 9, 4)


@functools.cache
def _draws(sampler: Sampler, which: str, filters: str) -> tuple[int, ...]:
    fields = FILTERS[filters]
    counts = TokenCounts(PROMPT, OUTPUT)
    by_seed: dict[int, SamplingParams] = {}
    drawn = []
    for seed, position in KEYS[which]:
        if seed not in by_seed:
            by_seed[seed] = SamplingParams(
                **{name: getattr(fields, name) for name in fields.__slots__} | {"seed": seed}
            )
        drawn.append(sampler(LOGITS, by_seed[seed], counts, position))
    return tuple(drawn)


def _exact(filters: str) -> NDArray[np.float64]:
    params = FILTERS[filters]
    scores = penalized(LOGITS.tolist(), params, PROMPT, OUTPUT)
    scores = [s / params.temperature for s in scores]
    chances = probabilities(scores, kept(scores, params))
    return np.array([chances.get(t, 0.0) for t in range(VOCAB)])


def marginal_p_value(drawn: tuple[int, ...], exact: NDArray[np.float64]) -> float:
    """Chi-square of single draws; tokens expected fewer than 5 times are pooled."""
    observed = np.bincount(drawn, minlength=exact.size).astype(float)
    if observed[exact == 0.0].any():
        return 0.0
    expected = exact * len(drawn)
    rare = expected < 5
    seen = np.append(observed[~rare], observed[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    used = wanted > 0
    return float(stats.chisquare(seen[used], wanted[used]).pvalue)


def pair_p_value(drawn: tuple[int, ...], exact: NDArray[np.float64]) -> float:
    """Chi-square of draws at positions 2i and 2i + 1 against independence."""
    pairs = np.array(drawn[0::2]) * exact.size + np.array(drawn[1::2])
    return marginal_p_value(tuple(pairs.tolist()), np.outer(exact, exact).ravel())


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("which", ["one seed, many positions", "one position, many seeds"])
def test_draws_have_the_softmax_distribution(filters: str, which: str) -> None:
    """Chi-square over positions and over seeds, for every filter: no token too often or rare."""
    assert marginal_p_value(_draws(sample, which, filters), _exact(filters)) > ALARM


@pytest.mark.parametrize("which", KEYS)
def test_successive_draws_are_independent(which: str) -> None:
    """Pairs of successive positions, or of successive seeds, occur as often as their product."""
    assert pair_p_value(_draws(sample, which, "plain"), _exact("plain")) > ALARM


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.5])
def test_close_distributions_draw_alike(spread: float) -> None:
    """Shared noise makes two distributions agree at least (1 - TV) / (1 + TV) of the time."""
    rng = np.random.default_rng(3)
    close = (LOGITS + rng.normal(0, spread, VOCAB)).astype(np.float32)
    params, none = SamplingParams(seed=99), TokenCounts([])
    count = 20_000
    same = sum(
        sample(LOGITS, params, none, i) == sample(close, params, none, i) for i in range(count)
    )
    p, q = (
        np.array(list(probabilities(x.tolist(), range(VOCAB)).values())) for x in (LOGITS, close)
    )
    tv = np.abs(p - q).sum() / 2
    bound = (1 - tv) / (1 + tv)
    assert stats.binom.cdf(same, count, bound) > ALARM


def _one_noise_for_two_positions(
    logits: Logits, params: SamplingParams, counts: TokenCounts, position: int
) -> int:
    return sample(logits, params, counts, position - position % 2)


def _one_uniform_for_two_tests(
    logits: Logits, params: SamplingParams, counts: TokenCounts, position: int
) -> int:
    """The published fault: a uniform number keyed by seed + position, used again by a neighbour."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    number = uniform(params.seed + position // 2 * 2, 0, np.array([0]))[0]
    return int(np.searchsorted(np.cumsum(weights) / weights.sum(), number))


def _slightly_sharpened(
    logits: Logits, params: SamplingParams, counts: TokenCounts, position: int
) -> int:
    return sample(logits * np.float32(1.05), params, counts, position)


def _filter_left_out(
    logits: Logits, params: SamplingParams, counts: TokenCounts, position: int
) -> int:
    return sample(logits, SamplingParams(seed=params.seed), counts, position)


@pytest.mark.parametrize("biased", [_one_noise_for_two_positions, _one_uniform_for_two_tests])
def test_reused_noise_is_noticed(biased: Sampler) -> None:
    """A sampler whose single draws are right, but tied in pairs, fails the pair check."""
    drawn = _draws(biased, "one seed, many positions", "plain")
    assert pair_p_value(drawn, _exact("plain")) < ALARM


@pytest.mark.parametrize(
    ("biased", "filters"),
    [(_slightly_sharpened, "plain"), (_filter_left_out, "top-p"), (_filter_left_out, "min-p")],
)
def test_a_bent_distribution_is_noticed(biased: Sampler, filters: str) -> None:
    """Logits 5% too sharp, or a filter that is not applied, fail the single-draw check."""
    drawn = _draws(biased, "one seed, many positions", filters)
    assert marginal_p_value(drawn, _exact(filters)) < ALARM
