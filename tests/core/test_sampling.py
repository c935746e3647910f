"""The sampling rule against a slow reading of it, and against `transformers`' filters."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slipstream.core.noise import MAX_GUMBEL, MIN_GUMBEL, gumbel
from slipstream.core.params import SamplingParams
from slipstream.core.sampling import TokenCounts, log_probabilities, sample, survivors
from tests.core.slow_rule import Borderline, kept, slow_sample

VOCAB = 40
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
# A coarse grid has many ties, a fine one none.
LOGITS = st.one_of(
    st.lists(st.integers(-6, 6).map(lambda i: i * 0.5), min_size=VOCAB, max_size=VOCAB),
    st.lists(st.floats(-30, 30, width=32), min_size=VOCAB, max_size=VOCAB),
)


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    # As they come over the wire, and as the library's bias processor stores them.
    return st.floats(low, high, width=32, allow_subnormal=False)


def _off(value: Any, strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(value), strategy)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.one_of(st.sampled_from([0.0, 1.0, 100.0]), _floats(2**-10, 3.0)),
    top_p=_off(1.0, _floats(2**-20, 1.0)),
    top_k=_off(0, st.integers(1, VOCAB + 2)),
    min_p=_off(0.0, _floats(0.0, 1.0)),
    presence_penalty=_off(0.0, _floats(-2, 2)),
    frequency_penalty=_off(0.0, _floats(-2, 2)),
    repetition_penalty=_off(1.0, _floats(0.125, 3.0)),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), _floats(-100, 100), max_size=4),
    seed=st.integers(0, 2**63 - 1),
)


def _float32(logits: list[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(logits, np.float32)


@settings(max_examples=400)
@given(LOGITS, PARAMS, TOKENS, TOKENS, st.integers(0, 10**6))
def test_rule_is_what_the_slow_reading_says(
    logits: list[float], params: SamplingParams, prompt: list[int], output: list[int], position: int
) -> None:
    """Bias, penalties, temperature, filters and noise, in this order, give the same token."""
    counts = TokenCounts(prompt, output)
    try:
        expected = slow_sample(logits, params, prompt, output, position)
    except Borderline:
        assume(False)
    assert sample(_float32(logits), params, counts, position) == expected


@settings(max_examples=200)
@given(LOGITS, PARAMS)
def test_survivors_are_what_the_slow_reading_keeps(
    logits: list[float], params: SamplingParams
) -> None:
    """All kept tokens, not only the one drawn; those that no noise could lift may be missing."""
    scores = np.array(logits) / (params.temperature or 1.0)
    with contextlib.suppress(Borderline):
        floor = scores.max() - (MAX_GUMBEL - MIN_GUMBEL)
        expected = [t for t in kept(scores.tolist(), params) if scores[t] >= floor]
        assert sorted(survivors(scores, params).tolist()) == expected


@settings(max_examples=200)
@given(LOGITS, PARAMS, TOKENS.filter(bool))
def test_filters_are_those_of_transformers(
    logits: list[float], params: SamplingParams, prompt: list[int]
) -> None:
    """Survivors have the same scores as after the library's own processors and warpers."""
    import torch
    from transformers.generation import logits_process as hf

    assume(not params.greedy)
    plain = SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
    )
    chain: list[Any] = [hf.RepetitionPenaltyLogitsProcessor(plain.repetition_penalty)]
    if plain.logit_bias:
        chain.insert(
            0, hf.SequenceBiasLogitsProcessor({(t,): b for t, b in plain.logit_bias.items()})
        )
    chain.append(hf.TemperatureLogitsWarper(plain.temperature))
    if plain.top_k:
        chain.append(hf.TopKLogitsWarper(plain.top_k))
    if plain.top_p < 1.0:
        chain.append(hf.TopPLogitsWarper(plain.top_p))
    if plain.min_p > 0.0:
        chain.append(hf.MinPLogitsWarper(plain.min_p))
    theirs = torch.tensor([logits], dtype=torch.float64)
    for step in chain:
        theirs = step(torch.tensor([prompt]), theirs)
    scores = _our_scores(logits, plain, prompt)
    try:
        kept(scores.tolist(), plain)
    except Borderline:
        assume(False)
    floor = scores.max() - 40.0
    ours = np.sort(scores[survivors(scores, plain)])
    left = np.sort(theirs[0][theirs[0].isfinite()].numpy())
    np.testing.assert_allclose(ours[ours > floor], left[left > floor], rtol=1e-6, atol=1e-6)


def _our_scores(
    logits: list[float], params: SamplingParams, prompt: list[int]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What `sample` hands to its filters, caught on the way."""
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        from slipstream.core import sampling

        def catch(scores: Any, params: SamplingParams) -> Any:
            caught.append(scores.copy())
            return survivors(scores, params)

        patch.setattr(sampling, "survivors", catch)
        sample(_float32(logits), params, TokenCounts(prompt), 0)
    result: np.ndarray[Any, np.dtype[np.float64]] = caught[0]
    return result


@given(LOGITS, TOKENS, st.integers(0, 10**6), st.integers(0, 2**63 - 1))
def test_greedy_is_the_first_argmax(
    logits: list[float], prompt: list[int], position: int, seed: int
) -> None:
    """Temperature 0 takes the largest logit, the lowest id among ties, whatever the seed."""
    params = SamplingParams(temperature=0.0, seed=seed, top_p=0.3, min_p=0.5, top_k=2)
    array = _float32(logits)
    expected = int(np.flatnonzero(array == array.max())[0])
    assert sample(array, params, TokenCounts(prompt), position) == expected


@given(LOGITS, PARAMS, TOKENS, TOKENS, st.integers(0, 10**6), st.randoms())
def test_nothing_else_has_a_say(
    logits: list[float],
    params: SamplingParams,
    prompt: list[int],
    output: list[int],
    position: int,
    random: Any,
) -> None:
    """Order of the history, draws before it, rolled back tokens, memory layout: no influence."""
    array = _float32(logits)
    first = sample(array, params, TokenCounts(prompt, output), position)
    before = array.copy()
    shuffled = random.sample(output, len(output))
    counts = TokenCounts(reversed(prompt * 2), shuffled)
    for token in prompt:
        counts.add(token)
    sample(array[::-1].copy(), params, counts, position + 1)
    for token in prompt:
        counts.remove(token)
    strided = np.repeat(array, 2)[::2]
    assert sample(strided, params, counts, position) == first
    assert np.array_equal(array, before), "the caller's logits were changed"


@given(
    st.integers(0, 2**32),
    st.floats(0.05, 4.0),
    st.floats(1.0, 60.0),
    st.integers(0, 2**63 - 1),
    st.integers(0, 10**6),
)
def test_the_noise_floor_changes_nothing(
    draw: int, temperature: float, spread: float, seed: int, position: int
) -> None:
    """Without filters the token is the argmax of score plus noise over the whole vocabulary."""
    logits = np.random.default_rng(draw).normal(0, spread, 3000).astype(np.float32)
    whole = logits.astype(np.float64) / temperature + gumbel(seed, position, np.arange(3000))
    params = SamplingParams(temperature=temperature, seed=seed)
    assert sample(logits, params, TokenCounts([]), position) == whole.argmax()


@pytest.mark.parametrize("size", [255, 256, 257, 5000, 49152])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.999999])
@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0])
def test_top_p_sorts_no_less_than_it_must(size: int, top_p: float, spread: float) -> None:
    """Large vocabularies, flat, nearly flat and peaked: the nucleus is the fully sorted one."""
    scores = np.random.default_rng(size).normal(0, spread, size)
    order = np.argsort(-scores, kind="stable")
    weights = np.exp(scores[order] - scores.max())
    mass = np.cumsum(weights) - weights
    expected = order[mass < top_p * weights.sum()]
    got = survivors(scores, SamplingParams(top_p=top_p))
    # The sum of the weights in another order may round the last token in or out.
    assert abs(got.size - expected.size) <= 1
    common = min(got.size, expected.size)
    assert np.isin(expected[:common], got).all()


@pytest.mark.parametrize("temperature", [1.5e-45, 1e-38, 1e-6])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    """The smallest temperature that the wire can carry overflows nothing: the best token wins."""
    logits = np.array([-3e38, -1.0, 2.0, 1.999, -np.inf], np.float32)
    assert sample(logits, SamplingParams(temperature=temperature), TokenCounts([]), 3) == 2
    assert sample(-logits[:4], SamplingParams(temperature=temperature), TokenCounts([]), 3) == 0


def test_log_probabilities_are_the_raw_softmax_in_order() -> None:
    """The token's log probability and the top list are those of the unmodified logits."""
    logits = np.random.default_rng(5).normal(0, 3, 1000).astype(np.float32)
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    own, top = log_probabilities(logits, 17, 20)
    assert own == pytest.approx(exact[17], abs=1e-12)
    assert [token for token, _ in top] == np.argsort(-exact)[:20].tolist()
    assert [value for _, value in top] == pytest.approx(sorted(exact)[::-1][:20], abs=1e-12)
    assert log_probabilities(logits, 17, 0)[1] == []
