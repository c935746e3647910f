"""What the engine's telemetry makes of what it is told."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import pytest

from slipstream.core.draft import Proposal
from slipstream.core.params import SamplingParams
from tests.verifier.rig import ELSEWHERE, GREEDY, Rig
from tests.verifier.rig import plain as answer_of
from verifier_service import telemetry
from verifier_service.overlap import Overlap

PROMPT = (5, 6, 7)


def test_computing_beside_steps_is_overlap():
    """The drafter's seconds lie right before its message; only what is inside steps counts."""
    overlap = Overlap()
    overlap.heard(0.5, 10.0)
    # 1 s that ends at 2.5, within the step from 1 to 3.
    overlap.heard(2.5, 11.0)
    overlap.stepped(1.0, 3.0)
    assert overlap.overlap_seconds == pytest.approx(1.0)
    # 2 s that end at 4.5: half a second in the step before, half a second in this one.
    overlap.heard(4.5, 13.0)
    overlap.stepped(4.0, 5.0)
    assert overlap.overlap_seconds == pytest.approx(2.0)
    assert overlap.verify_seconds == pytest.approx(3.0)
    assert 0 < overlap.ratio <= 1


def test_overlap_is_never_more_than_there_is():
    """Passes side by side, a new drafter, and long silences make no time."""
    overlap = Overlap()
    for step in range(100):
        overlap.heard(step + 0.5, 50.0 * step)
        if step == 50:
            overlap.lost()
        overlap.stepped(float(step), step + 1.0)
    assert overlap.overlap_seconds <= overlap.verify_seconds == pytest.approx(100.0)
    assert overlap.ratio <= 1
    assert Overlap().ratio == 0


def propose(rig: Rig, truth: list[int], start: int, tokens: list[int], committed: int) -> None:
    """Drafts behind the first `start` tokens of the truth."""
    prefix = rig.chain(truth[:start]).at(start)
    rig.propose(Proposal(1, prefix, tuple(tokens), False, committed))


@pytest.fixture
def drafting(runner):
    """A sequence whose prompt was prefilled beside a drafter, and the right sequence."""
    answer = answer_of(runner, PROMPT, GREEDY, max_tokens=12, ignore_eos=True)
    truth = [*PROMPT, *answer.tokens]
    rig = Rig(runner, length=4)
    rig.engine.drafter_up(1, ELSEWHERE)
    outcome = rig.submit(PROMPT, GREEDY, max_tokens=12, ignore_eos=True)
    rig.step()
    assert len(outcome.tokens) == 1
    yield rig, truth
    rig.finish()


def wrong(token: int) -> int:
    return token + 1 if token < 90 else 3


def test_drafts_rejected_and_unused(drafting):
    """Of four drafts the second is wrong: those from it on are rejected, what no step had is
    unused."""
    rig, truth = drafting
    drafts = [truth[4], wrong(truth[5]), *truth[6:10]]
    propose(rig, truth, 4, drafts, 4)
    rig.step()
    told = rig.engine.telemetry
    assert told.wasted == {"rejected": 3, "stale": 0, "unused": 2}
    assert rig.engine.counters.accepted_tokens == 1


def test_drafts_that_a_step_overtook(drafting):
    """What was on its way is a pre-verify hit where the step without drafts found it right, a miss
    where not; those that follow a wrong one are stale and no misses."""
    rig, truth = drafting
    rig.step()
    propose(rig, truth, 4, truth[4:6], 4)
    rig.engine._read_inbox()
    told = rig.engine.telemetry
    assert (told.pre_hits, told.pre_misses) == (1, 0)
    rig.step()
    assert rig.engine.counters.accepted_tokens == 1
    length = 7
    propose(rig, truth, length - 1, [wrong(truth[length - 1])], length - 1)
    bad = rig.chain([*truth[: length - 1], wrong(truth[length - 1])]).at(length)
    rig.propose(Proposal(1, bad, (5,), False, length - 1))
    rig.engine._read_inbox()
    assert (told.post_hits, told.post_misses) == (0, 1)
    assert told.wasted["stale"] == 2


def test_requests_are_timed_and_counted(runner, monkeypatch):
    """Queue, prefill, decode; one gap for each token behind the first; ends by their reason."""
    # Each reading is a second behind the one before: what a pause of the machine adds is little.
    readings = itertools.count(time.perf_counter() + 100.0)
    ticking = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(telemetry, "time", ticking)
    rig = Rig(runner, max_running=1)
    first = rig.submit(PROMPT, GREEDY, max_tokens=5, ignore_eos=True)
    second = rig.submit(PROMPT, SamplingParams(temperature=0.0), max_tokens=50, ignore_eos=True)
    third = rig.submit(PROMPT, GREEDY, max_tokens=5)
    third.cancel()
    while not first.ended:
        rig.step()
    rig.step()
    second.cancel()
    rig.finish()
    told = rig.engine.telemetry
    assert told.finished == {"stop": 0, "length": 1, "abort": 2}
    assert told.queued.count == told.first_token.count == told.prefill.count == 2
    assert told.gaps.count == rig.engine.counters.generated_tokens - 2
    assert told.queued.total > told.prefill.total / 10 > 0
    kinds = {kind: tally.count for kind, tally in told.steps.items()}
    assert sum(kinds.values()) == rig.engine.counters.steps == told.rows.count
    assert kinds["prefill"] == 2
    assert sum(itertools.chain(told.wasted.values())) == 0
