"""Generations that go on behind tokens decided before: the rest is what it would have been."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.core.draft import Open
from slipstream.core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidParameter,
    Overloaded,
    SlipstreamError,
)
from slipstream.core.params import SamplingParams
from tests.verifier.rig import ELSEWHERE, EOS, GREEDY, VOCAB, Outcome, Rig, plain
from tests.verifier.scripts import Draft, Proposer
from tests.verifier.test_lossless import EVERYTHING, some_params, some_prompt, truth_of
from tests.verifier.test_preemption import HOW as AT_ONCE
from tests.verifier.test_preemption import PATIENT, limits_of, prompts
from verifier_service.admission import Bounds
from verifier_service.generation import CommittedToken, Finish
from verifier_service.plan import Limits

PROMPT = tuple(range(10, 60))
HOW = {"max_tokens": 40, "ignore_eos": True, "logprobs": 2}
CANONICAL = Limits(prefill_chunk=16, strict=True)
SCRIPT = [Draft("right", 5, 0), Draft("half", 4, 1), Draft("wrong", 2, 0)]


def flat(outcome: Outcome) -> list[CommittedToken]:
    """All tokens with their log probabilities."""
    return [token for step in outcome.steps for token in step]


def resumed(rig: Rig, whole: Outcome, cut: int, params: SamplingParams, **how) -> Outcome:
    """The same request again, of which `cut` tokens are known."""
    committed = tuple(whole.tokens[:cut])
    return rig.submit(whole.prompt, params, committed=committed, resumed=True, **how)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(
    params=some_params,
    prompt=some_prompt,
    max_tokens=st.integers(2, 40),
    part=st.floats(0.0, 1.0, exclude_max=True),
    kind=st.sampled_from(["canonical", "mixed"]),
    drafter=st.booleans(),
)
def test_any_cut_any_parameters(exact, params, prompt, max_tokens, part, kind, drafter) -> None:
    """Cut anywhere, under any parameters, with a drafter and without: the rest has bit for bit the
    tokens and log probabilities of the undisturbed generation, and its finish reason."""
    runner, rows = exact
    limits = limits_of(kind, rows)
    how = {"max_tokens": max_tokens, "logprobs": 1}
    whole = plain(runner, prompt, params, limits=limits, **how)
    cut = int(part * len(whole.tokens))
    runner.pool.forget()
    rig = Rig(runner, limits=limits)
    if drafter:
        rig.engine.drafter_up(1, ELSEWHERE)
    rest = resumed(rig, whole, cut, params, **how)
    # What the drafter knows begins with what was committed.
    known = Outcome((*prompt, *whole.tokens[:cut]), rest.steps)
    proposer = Proposer(rig, 1, known, truth_of(whole), SCRIPT)
    rig.finish(proposer if drafter else lambda: None)
    assert flat(rest) == flat(whole)[cut:]
    assert rest.finish == whole.finish
    runner.pool.forget()


@pytest.mark.parametrize("drafter", [False, True], ids=["plain", "drafter"])
@pytest.mark.parametrize("kind", ["canonical", "mixed"])
def test_ten_at_once_in_a_full_pool(exact, answers_alone, kind, drafter) -> None:
    """Ten that were cut at different places, resumed together in a pool far too small: each
    has the rest of what it has alone, although some lose their place again."""
    runner, rows = exact
    limits = limits_of(kind, rows)
    alone = answers_alone(kind)[:10]
    rig = Rig(runner, limits=limits, bounds=PATIENT)
    if drafter:
        rig.engine.drafter_up(1, ELSEWHERE)
    outcomes, proposers, cuts = [], [], [(3 * i) % 10 for i in range(10)]
    for i, (whole, cut, (_, params)) in enumerate(zip(alone, cuts, prompts()[:10], strict=True)):
        outcomes.append(resumed(rig, whole, cut, params, **AT_ONCE))
        known = Outcome((*whole.prompt, *whole.tokens[:cut]), outcomes[i].steps)
        proposers.append(Proposer(rig, i + 1, known, truth_of(whole), SCRIPT))
    rig.finish(lambda: [proposer() for proposer in proposers if drafter])
    for outcome, whole, cut in zip(outcomes, alone, cuts, strict=True):
        assert flat(outcome) == flat(whole)[cut:]
        assert outcome.finish is Finish.LENGTH
        assert outcome.cached <= len(whole.prompt)
    counters = rig.engine.counters
    assert counters.preemptions > 0
    assert counters.resumed == sum(cut > 0 for cut in cuts)
    assert counters.generated_tokens == sum(len(outcome.tokens) for outcome in outcomes)
    runner.pool.forget()


def test_the_drafter_is_told_what_is_prompt_and_what_was_committed(runner) -> None:
    """The opening carries all tokens, and how many of them penalties take for the prompt."""
    whole = plain(runner, PROMPT, EVERYTHING, **HOW)
    rig = Rig(runner)
    rig.engine.drafter_up(1, ELSEWHERE)
    resumed(rig, whole, 7, EVERYTHING, **HOW)
    rig.finish()
    (opened,) = [c for _, c in rig.commands if isinstance(c, Open)]
    assert opened.tokens == (*PROMPT, *whole.tokens[:7])
    assert (opened.num_prompt, opened.max_length) == (50, 90)


def test_what_is_counted_is_this_calls(exact) -> None:
    """Steps, generated tokens and the mean of outputs leave out what was committed before, and of
    what was found in the cache only the prompt's part is told."""
    runner, rows = exact
    limits = limits_of("mixed", rows)
    whole = plain(runner, PROMPT, GREEDY, limits=limits, **HOW)
    # All but the last block of what it has is in the cache: more than the prompt.
    rig = Rig(runner, limits=limits)
    rest = resumed(rig, whole, 30, GREEDY, **HOW)
    rig.finish()
    assert flat(rest) == flat(whole)[30:]
    assert rest.counts.steps == 10
    counters = rig.engine.counters
    assert (counters.generated_tokens, counters.resumed) == (10, 1)
    assert counters.cached_prompt_tokens == rest.cached == len(PROMPT)
    assert rig.engine.admission.drain.output == 10
    runner.pool.forget()


def test_rows_of_a_prompt_are_not_taken_for_those_of_an_answer(runner) -> None:
    """Where bits depend on the shape, a later turn's prompt holds an answer's tokens as rows of
    chunks; who resumes that answer, or computes it again, does not take them."""
    whole = plain(runner, PROMPT, GREEDY, limits=CANONICAL, **HOW)
    plain(runner, (*PROMPT, *whole.tokens, *PROMPT), GREEDY, limits=CANONICAL, max_tokens=1)
    rig = Rig(runner, limits=CANONICAL)
    rest = resumed(rig, whole, 39, GREEDY, **HOW)
    computed = []
    rig.finish(lambda: computed.extend(g.sequence.computed for g in rig.engine.scheduler.running))
    assert flat(rest) == flat(whole)[39:]
    assert rest.cached == 48
    assert computed
    assert min(computed) <= len(PROMPT)
    runner.pool.forget()


def test_not_refused_for_load(runner) -> None:
    """Where another one is refused for want of room in the queue or for a long wait, one that was
    taken before is not, nor given up while it waits; it goes before those that have not begun."""
    now = [100.0]
    rig = Rig(runner, max_running=1, bounds=Bounds(1, 10.0), clock=lambda: now[0])
    first = rig.submit(PROMPT, **HOW)
    rig.step()
    waits = rig.submit(PROMPT, **HOW)
    with pytest.raises(Overloaded):
        rig.submit(PROMPT, **HOW)
    later = [rig.submit(PROMPT, committed=(9,), resumed=True, **HOW) for _ in range(3)]
    rig.step()
    assert [g.number for g in rig.engine.scheduler.waiting] == [4, 5, 6, 2]
    now[0] += 1000.0
    rig.step()
    assert isinstance(waits.error, Overloaded)
    rig.finish()
    assert all(one.finish is Finish.LENGTH for one in (first, *later))
    assert {len(one.tokens) for one in later} == {39}


def test_a_deadline_holds_for_it_too(runner) -> None:
    """One that resumes ends at its deadline, also while it waits."""
    now = [100.0]
    rig = Rig(runner, max_running=1, clock=lambda: now[0])
    first = rig.submit(PROMPT, **HOW)
    rig.step()
    how = {"committed": (9,), "resumed": True, **HOW}
    late = rig.submit(PROMPT, deadline_seconds=5.0, **how)
    with pytest.raises(DeadlineExceeded):
        rig.submit(PROMPT, deadline_seconds=-1.0, **how)
    rig.step()
    now[0] += 6.0
    rig.step()
    assert isinstance(late.error, DeadlineExceeded)
    first.cancel()
    rig.finish()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"committed": (9,) * 40}, "nothing is left to generate"),
        ({"committed": (9,) * 41}, "nothing is left to generate"),
        ({"committed": (9, VOCAB)}, f"token id {VOCAB}; the vocabulary has"),
        ({"committed": (9, 77, 9), "stop": [77]}, "token id 77; that token ends"),
        ({"committed": (EOS,), "ignore_eos": False}, f"token id {EOS}; that token ends"),
    ],
)
def test_what_cannot_be_a_beginning(runner, more, said) -> None:
    """Tokens that leave nothing to do, are in no vocabulary or end the generation are refused, in
    words that name the field, and leave nothing behind."""
    rig = Rig(runner)
    with pytest.raises(InvalidParameter, match="committed_token_ids") as refusal:
        rig.submit(PROMPT, resumed=True, **{**HOW, **more})
    assert said in refusal.value.message
    assert refusal.value.param == "committed_token_ids"
    rig.finish()


def test_its_length_is_bounded_as_before(runner) -> None:
    """What was committed is part of max_tokens: it needs no more room, and gets none."""
    rig = Rig(runner)
    room = rig.engine.max_length
    how = {**HOW, "max_tokens": room - len(PROMPT)}
    error: type[SlipstreamError] = ContextTooLong
    with pytest.raises(error):
        rig.submit(PROMPT, committed=(9,) * 9, resumed=True, **{**how, "max_tokens": room})
    outcome = rig.submit(PROMPT, committed=(9,) * (room - 53), resumed=True, **how)
    rig.finish()
    assert len(outcome.tokens) == 3
    runner.pool.forget()
