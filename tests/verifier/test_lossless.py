"""Whatever arrives as drafts, the tokens are those of plain decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from slipstream.core.params import SamplingParams
from slipstream.core.sampling import TokenCounts, sample
from tests.verifier.rig import ELSEWHERE, EOS, GREEDY, VOCAB, Outcome, Rig, plain
from tests.verifier.scripts import KINDS, Draft, Proposer

EVERYTHING = SamplingParams(
    temperature=1.0,
    top_k=40,
    top_p=0.95,
    min_p=0.001,
    presence_penalty=0.5,
    frequency_penalty=0.3,
    repetition_penalty=1.2,
    logit_bias={5: 2.0, 9: -100.0},
    seed=11,
)
PROMPT = tuple(range(10, 30))
THIRTY = {"max_tokens": 30, "ignore_eos": True}

some_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 5, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.3, 0.9]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.8, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(
        st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 3.0]), max_size=3
    ),
    seed=st.integers(0, 2**63 - 1),
)
some_script = st.lists(
    st.builds(Draft, st.sampled_from(KINDS), st.integers(1, 10), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)
some_prompt = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40).map(tuple)


def truth_of(expected: Outcome) -> list[int]:
    """The right sequence; behind its end a drafter may go on with anything."""
    return [*expected.prompt, *expected.tokens, *range(40, 60)]


def speculated(runner, prompt, params, script, truth, **how) -> Outcome:
    rig = Rig(runner)
    rig.engine.drafter_up(1, ELSEWHERE)
    outcome = rig.submit(prompt, params, **how)
    rig.finish(Proposer(rig, 1, outcome, truth, script))
    check_counts(rig, [outcome])
    return outcome


def check_counts(rig: Rig, outcomes: list[Outcome]) -> None:
    """The numbers that are reported must be those of what happened."""
    drafted = accepted = generated = 0
    for outcome in outcomes:
        counts = outcome.counts
        assert counts is not None
        assert counts.accepted <= counts.drafted
        assert sum(counts.histogram) == counts.spec_steps <= counts.steps
        assert sum(i * n for i, n in enumerate(counts.histogram)) == counts.accepted
        # Every step gives one token of its own beside those it accepts, except where the last
        # token was itself a draft.
        assert 0 <= counts.steps + counts.accepted - len(outcome.tokens) <= 1
        assert len(outcome.steps) == counts.steps
        drafted, accepted = drafted + counts.drafted, accepted + counts.accepted
        generated += len(outcome.tokens)
    totals = rig.engine.counters
    assert (totals.draft_tokens, totals.accepted_tokens) == (drafted, accepted)
    assert totals.generated_tokens == generated


@settings(deadline=None, max_examples=150, derandomize=True)
@given(params=some_params, script=some_script, prompt=some_prompt, max_tokens=st.integers(1, 30))
def test_any_drafts_any_parameters(strict_runner, params, script, prompt, max_tokens) -> None:
    """Any script of drafts under any parameters: tokens and finish reason of plain decoding."""
    expected = plain(strict_runner, prompt, params, max_tokens=max_tokens)
    got = speculated(
        strict_runner, prompt, params, script, truth_of(expected), max_tokens=max_tokens
    )
    assert (got.tokens, got.finish) == (expected.tokens, expected.finish)


@pytest.fixture(scope="module", params=[GREEDY, EVERYTHING], ids=["greedy", "everything"])
def answered(request, strict_runner) -> tuple[SamplingParams, Outcome]:
    """Parameters, and what plain decoding of 30 tokens gives with them: once for all drafts."""
    return request.param, plain(strict_runner, PROMPT, request.param, **THIRTY)


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_draft(runner, answered, kind, delay) -> None:
    """Each kind of draft by itself, in time and late: tokens of plain decoding."""
    params, expected = answered
    script = [Draft(kind, size, delay) for size in (1, 2, 5, 9)]
    got = speculated(runner, PROMPT, params, script, truth_of(expected), **THIRTY)
    assert (got.tokens, got.finish) == (expected.tokens, expected.finish)


@pytest.mark.parametrize("seed", range(12))
def test_many_seeds(runner, seed) -> None:
    """Every filter and penalty at once at temperature 1, seed by seed, under half-right drafts."""
    params = SamplingParams(**{**_fields(EVERYTHING), "seed": seed * 7919})
    expected = plain(runner, PROMPT, params, max_tokens=40)
    script = [Draft("half", 6, 0), Draft("right", 4, 0), Draft("pieces", 5, 1)]
    got = speculated(runner, PROMPT, params, script, truth_of(expected), max_tokens=40)
    assert (got.tokens, got.finish) == (expected.tokens, expected.finish)


def test_right_drafts_are_accepted_in_full(runner) -> None:
    """Right drafts save the steps they should: 8 a step, and the histogram says so."""
    how = {"max_tokens": 37, "ignore_eos": True}
    expected = plain(runner, PROMPT, EVERYTHING, **how)
    got = speculated(runner, PROMPT, EVERYTHING, [Draft("right", 8, 0)], truth_of(expected), **how)
    assert got.tokens == expected.tokens
    assert got.counts is not None
    # One token from the prompt's step, then 4 steps of 8 drafts and one more token.
    assert (got.counts.steps, got.counts.spec_steps) == (5, 4)
    assert got.counts.histogram == [0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert got.counts.accepted == got.counts.drafted == 32


def test_wrong_drafts_are_all_refused(runner) -> None:
    """Wrong drafts cost rows and nothing else: one token a step, none accepted."""
    how = {"max_tokens": 12, "ignore_eos": True}
    expected = plain(runner, PROMPT, GREEDY, **how)
    got = speculated(runner, PROMPT, GREEDY, [Draft("wrong", 4, 0)], truth_of(expected), **how)
    assert got.tokens == expected.tokens
    assert got.counts is not None
    assert (got.counts.accepted, got.counts.steps) == (0, 12)
    assert got.counts.histogram == [10]  # the first step has no draft, the last has no room


@pytest.mark.parametrize("kind", ["right", "pieces", "overlap", "endless", "twice"])
def test_end_of_sequence_inside_an_accepted_run(runner, kind) -> None:
    """An end of sequence among accepted drafts is the last token, whatever was drafted after."""
    params = next(
        p
        for p in (SamplingParams(seed=s, logit_bias={EOS: 3.0}) for s in range(200))
        if 5 <= len(plain(runner, PROMPT, p, max_tokens=40).tokens) <= 7
    )
    expected = plain(runner, PROMPT, params, max_tokens=40)
    truth = truth_of(expected)
    got = speculated(runner, PROMPT, params, [Draft(kind, 9, 0)], truth, max_tokens=40)
    assert (got.tokens, got.finish) == (expected.tokens, expected.finish)
    assert got.tokens[-1] == EOS
    assert got.counts is not None
    assert got.counts.steps == 2


@pytest.mark.parametrize("place", range(1, 9))
def test_stop_token_inside_an_accepted_run(runner, place) -> None:
    """A request's stop token ends it at that very token, wherever in the run it stands."""
    free = plain(runner, PROMPT, EVERYTHING, max_tokens=12, ignore_eos=True)
    stop = [free.tokens[place]]
    expected = plain(runner, PROMPT, EVERYTHING, max_tokens=12, ignore_eos=True, stop=stop)
    how = {"max_tokens": 12, "ignore_eos": True, "stop": stop}
    got = speculated(runner, PROMPT, EVERYTHING, [Draft("right", 9, 0)], truth_of(free), **how)
    assert got.tokens == expected.tokens == free.tokens[: free.tokens.index(stop[0]) + 1]
    assert got.finish == expected.finish


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_length_limit_inside_an_accepted_run(runner, max_tokens) -> None:
    """max_tokens holds exactly, whatever runs beyond it, and no draft is wasted past it."""
    free = plain(runner, PROMPT, EVERYTHING, max_tokens=30, ignore_eos=True)
    how = {"max_tokens": max_tokens, "ignore_eos": True}
    got = speculated(runner, PROMPT, EVERYTHING, [Draft("endless", 9, 0)], truth_of(free), **how)
    assert got.tokens == free.tokens[:max_tokens]
    assert got.finish is not None
    assert got.finish.value == "length"
    assert got.counts is not None
    assert got.counts.drafted <= max(0, max_tokens - 2)


def test_prompt_that_fills_the_context(runner) -> None:
    """One token after a prompt that leaves room for one; drafts for it are not even looked at."""
    context = runner.loaded.context_length
    prompt = tuple(i % VOCAB for i in range(context - 1))
    expected = plain(runner, prompt, GREEDY, max_tokens=1)
    got = speculated(
        runner, prompt, GREEDY, [Draft("right", 4, 0)], truth_of(expected), max_tokens=1
    )
    assert (got.tokens, got.finish) == (expected.tokens, expected.finish)
    assert len(got.tokens) == 1


@pytest.mark.parametrize("params", [GREEDY, EVERYTHING], ids=["greedy", "everything"])
def test_plain_decoding_against_an_independent_model(runner, checkpoint, params) -> None:
    """Plain decoding itself: `transformers` over the whole history each time, then the rule."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokens = list(PROMPT)
    with torch.inference_mode():
        for _ in range(25):
            logits = model(torch.tensor([tokens])).logits[0, -1].numpy()
            counts = TokenCounts(PROMPT, tokens[len(PROMPT) :])
            tokens.append(sample(logits, params, counts, len(tokens)))
    got = plain(runner, PROMPT, params, max_tokens=25, ignore_eos=True)
    assert got.tokens == tokens[len(PROMPT) :]


def test_log_probabilities_are_those_of_plain_decoding(runner) -> None:
    """Log probabilities of accepted drafts are bit for bit those of plain decoding."""
    how = {"max_tokens": 20, "logprobs": 3, "ignore_eos": True}
    expected = plain(runner, PROMPT, EVERYTHING, **how)
    got = speculated(runner, PROMPT, EVERYTHING, [Draft("half", 7, 0)], truth_of(expected), **how)
    flat = [token for step in got.steps for token in step]
    assert flat == [token for step in expected.steps for token in step]
    assert all(len(token.top) == 3 for token in flat)


def _fields(params: SamplingParams) -> dict:
    return {name: getattr(params, name) for name in SamplingParams.__slots__}
