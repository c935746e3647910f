"""N-gram guesses inside the drafter: the same drafts in fewer passes, and none where they fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drafter_service.kv_context import KvContext
from drafter_service.pass_seconds import MOST_ROWS, PassSeconds
from drafter_service.servicer import DrafterServicer
from slipstream.core.params import SamplingParams
from slipstream.wire.proto import drafter_pb2
from tests.drafter.rig import DrafterRig, opening
from tests.verifier.rig import GREEDY, VOCAB

SEEDED = SamplingParams(temperature=1.0, seed=11)
PENALTIES = SamplingParams(temperature=0.8, repetition_penalty=1.2, presence_penalty=0.5, seed=5)
# What even a random model repeats for ever; and one that says again what it said before, at times.
REPEATING = SamplingParams(temperature=0.0, logit_bias={3: 100.0})
COPYING = SamplingParams(temperature=0.0, logit_bias=dict.fromkeys(range(4), 12.0))


def followed(rig: DrafterRig, prompt, params, tokens: int, window: int = 8) -> list[int]:
    """What the drafter says of itself: each run of drafts is committed as it is."""
    rig.obey(opening(prompt, params, window=window, max_length=len(prompt) + tokens + 20))
    history = list(prompt)
    while len(history) < len(prompt) + tokens:
        rig.run()
        ahead = rig.ahead()
        rig.obey(rig.commit(history, *ahead))
        history += ahead
    rig.close_all()
    return history


@pytest.mark.parametrize("params", [GREEDY, SEEDED, PENALTIES, COPYING])
@pytest.mark.parametrize("ngram", ["on", "auto"])
def test_the_same_drafts(runner, params, ngram) -> None:
    """Whatever is guessed, the drafts are those of the drafter alone, in no more passes."""
    alone, assisted = DrafterRig(runner), DrafterRig(runner, ngram=ngram)
    prompt = [3, 1, 2, 3, 1, 2, 3]
    expected = followed(alone, prompt, params, 80)
    assert followed(assisted, prompt, params, 80) == expected
    assert assisted.engine.counters.steps <= alone.engine.counters.steps


@pytest.mark.parametrize("ngram", ["on", "auto"])
def test_copying_text_takes_fewer_passes(runner, monkeypatch, ngram) -> None:
    """Text that repeats itself is drafted at four and more tokens a pass."""
    monkeypatch.setattr(PassSeconds, "observe", lambda *_: None)  # times as assumed, not measured
    alone, assisted = DrafterRig(runner), DrafterRig(runner, ngram=ngram)
    expected = followed(alone, [1, 2, 3], REPEATING, 160)
    assert followed(assisted, [1, 2, 3], REPEATING, 160) == expected
    counters = assisted.engine.counters
    assert counters.drafted_tokens == alone.engine.counters.drafted_tokens
    assert counters.steps <= alone.engine.counters.steps / 4
    assert counters.right_guesses >= 0.8 * counters.guessed_tokens > 0


def test_text_that_breaks_every_match(runner, monkeypatch) -> None:
    """Where guesses are always wrong, automatic assist all but stops within tens of passes,
    and goes on when told to be on."""
    monkeypatch.setattr(PassSeconds, "observe", lambda *_: None)  # times as assumed, not measured
    made: dict[str, list[int]] = {}
    for ngram in ("on", "auto"):
        rig = DrafterRig(runner, ngram=ngram)
        phrase = (7, 8, 9, 10, 11, 12)
        history = [*phrase, 20, *phrase, 21, *phrase]
        rig.obey(opening(history, SEEDED, max_length=250))
        made[ngram] = counts = []
        for i in range(30):
            before = rig.engine.counters.guessed_tokens
            rig.run()
            counts.append(rig.engine.counters.guessed_tokens - before)
            # It always ends as before; the drafter's random model never goes on as before.
            decided = (30 + i, *phrase)
            rig.obey(rig.commit(history, *decided))
            history += decided
        rig.close_all()
    assert sum(made["auto"][:10]) > 0
    # A pass of 7 rows takes an eighth one at next to no cost, and so for little hope.
    assert sum(made["auto"][20:]) <= 0.1 * sum(made["on"][20:])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    commits=st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=6
    ),
    params=st.sampled_from([GREEDY, SEEDED, COPYING]),
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=30),
)
def test_guesses_leave_nothing_behind(drafter_runner, commits, params, prompt) -> None:
    """However commits agree with or contradict guessed drafts: tokens and KV are those of a
    drafter that never guessed."""
    rig = DrafterRig(drafter_runner, ngram="on")
    rig.obey(opening(prompt, params, max_length=200))
    history = list(prompt)
    for agreeing, own, steps in commits:
        for _ in range(steps):
            rig.step()
        right = rig.ahead()[:agreeing] if rig.engine.num_open else []
        wrong = [(t + 1) % VOCAB for t in rig.ahead()[len(right) :][:1]] if right else []
        decided = [*right, *wrong, *range(own)] or [2]
        rig.obey(rig.commit(history, *decided))
        history += decided
    rig.run()
    assert rig.refusals() == []
    tokens, kv = list(rig.draft().sequence.tokens), rig.kv()
    rig.close_all()

    fresh = DrafterRig(drafter_runner)
    fresh.obey(opening(history, params, num_prompt=len(prompt), max_length=200))
    fresh.run()
    assert tokens == fresh.draft().sequence.tokens
    shared = min(kv.shape[2], fresh.kv().shape[2])
    assert shared >= len(tokens) - 8
    torch.testing.assert_close(kv[:, :, :shared], fresh.kv()[:, :, :shared], rtol=1e-4, atol=1e-4)
    fresh.close_all()


def test_many_sequences_share_the_rows(runner, monkeypatch) -> None:
    """A pass never has more rows than the kernels are made for, whoever guesses."""
    rows: list[int] = []
    forward = runner.forward
    monkeypatch.setattr(
        runner, "forward", lambda s: (rows.append(sum(len(x.tokens) for x in s)), forward(s))[1]
    )
    rig = DrafterRig(runner, ngram="on")
    prompt = [3] * 24
    for i in range(8):
        rig.obey(opening(prompt, REPEATING, sequence_id=i, window=12, max_length=60))
    rig.run()
    assert all(len(rig.ahead(i)) == 12 for i in range(8))
    assert max(rows) <= MOST_ROWS
    assert sum(len(rig.ahead(i)) for i in range(8)) > 2 * (len(rows) - 8)
    rig.close_all()


def test_a_long_prompt_is_read_bit_by_bit(runner, monkeypatch) -> None:
    """The index of a long prompt is built beside several passes; until then there are no guesses,
    and it is the same in the end."""
    from drafter_service import guesses

    monkeypatch.setattr(guesses, "_READ_AT_ONCE", 16)
    rig = DrafterRig(runner, ngram="on")
    rig.obey(opening([3] * 80, REPEATING, window=16, max_length=120))
    rig.run()
    assert rig.engine.counters.right_guesses > 0
    assert rig.assist is not None
    (guesser,) = rig.assist._guessers.values()
    assert len(guesser.proposer) == 80
    rig.close_all()
    assert rig.assist._guessers == {}


def test_pass_times() -> None:
    """Measured times stand for their class of passes, others are inferred; one interrupted pass
    does little, and what a bad moment taught is forgotten."""
    seconds = PassSeconds()
    assert seconds.estimate(1) < seconds.estimate(4) < seconds.estimate(8) < seconds.estimate(32)
    for _ in range(50):
        seconds.observe(1, 0.010)
        seconds.observe(4, 0.012)
    assert seconds.estimate(1) == pytest.approx(0.010, rel=0.1)
    assert seconds.estimate(4) == pytest.approx(0.012, rel=0.1)
    assert 0.012 < seconds.estimate(6) < seconds.estimate(8) < 0.02
    seconds.observe(1, 9.0)
    assert seconds.estimate(1) < 0.012
    for _ in range(30):
        seconds.observe(4, 0.080)
    bad = seconds.estimate(4)
    for _ in range(300):
        seconds.observe(1, 0.010)
    assert seconds.estimate(4) < 0.02 < bad
    before = seconds.estimate(32)
    seconds.observe(MOST_ROWS + 1, 5.0)
    assert seconds.estimate(32) == before


async def test_get_drafter_tells_of_guesses(runner) -> None:
    """GetDrafter has the guesses, the right ones and the early stops that the engine counted."""
    rig = DrafterRig(runner, ngram="on", early_stop="on")
    followed(rig, [1, 2, 3], REPEATING, 60)
    followed(rig, [1, 2, 3], SEEDED, 60)
    servicer = DrafterServicer(KvContext(runner, "own"))
    servicer.attach(rig.engine)
    counters, told = (
        rig.engine.counters,
        await servicer.GetDrafter(drafter_pb2.GetDrafterRequest(), None),
    )
    assert told.guessed_tokens == counters.guessed_tokens > told.right_guesses
    assert told.right_guesses == counters.right_guesses > 0
    assert told.early_stops == counters.early_stops > 0
