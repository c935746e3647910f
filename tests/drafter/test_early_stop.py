"""Stopping early: fewer drafts in vain on hard text, none fewer on easy text, always announced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drafter_service.confidence import Threshold
from slipstream.core.draft import Proposal, SetPace
from slipstream.core.params import SamplingParams
from slipstream.engine.draws import Draws
from tests.drafter.rig import DrafterRig, opening
from tests.drafter.test_both_engines import Pair, _in_step
from tests.verifier.rig import GREEDY, Outcome, Rig, plain

PROMPT = tuple(range(10, 30))
SEEDED = SamplingParams(temperature=1.0, seed=3)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
def test_the_probability_of_a_token(temperature) -> None:
    """The compiled sum gives the softmax, also where numbers are far apart or all alike."""
    torch.manual_seed(1)
    rows = torch.randn(4, 5000) * torch.tensor([[0.0], [1.0], [10.0], [200.0]])
    draws = Draws(rows)
    expected = torch.softmax(rows.double() / (temperature or 1.0), -1)
    for row in range(4):
        for token in (0, 17, int(rows[row].argmax())):
            rated = draws.probability(row, token, temperature)
            np.testing.assert_allclose(rated, expected[row, token], rtol=1e-4, atol=1e-30)


def test_the_threshold_follows_the_text() -> None:
    """It rises while drafts fail and falls while they hold, across its range within tens of
    commits, and stays within its bounds."""
    threshold = Threshold(0.5)
    for _ in range(20):
        threshold.update(1, 4)
    assert threshold.value > 0.9
    for _ in range(35):
        threshold.update(4, 4)
    assert threshold.value < 0.1
    for _ in range(100):
        threshold.update(4, 4)
    assert threshold.value == 0.0
    for _ in range(200):
        threshold.update(0, 4)
    assert 0.9 < threshold.value < 1.0
    before = threshold.value
    threshold.update(0, 0)
    assert threshold.value == before


def _pair(verifier_runner, drafter_runner, params, early_stop: str) -> tuple[Outcome, Pair]:
    pair = Pair(Rig(verifier_runner), DrafterRig(drafter_runner, early_stop=early_stop))
    pair.connect()
    pair.drafter.obey(SetPace(cores=(), burst=True), connection=1)
    outcome = pair.verifier.submit(PROMPT, params, max_tokens=150, ignore_eos=True)
    pair.verifier.finish(lambda: _in_step(pair))
    pair.settle()
    return outcome, pair


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_hard_text_wastes_fewer_drafts(verifier_runner, skipping_runner, params) -> None:
    """A drafter that is often wrong throws away half as many drafts, and keeps most of the right
    ones; the tokens stay."""
    free, unstopped = _pair(verifier_runner, skipping_runner, params, "off")
    stopped, pair = _pair(verifier_runner, skipping_runner, params, "auto")
    expected = plain(verifier_runner, PROMPT, params, max_tokens=150, ignore_eos=True)
    assert stopped.tokens == free.tokens == expected.tokens
    before, after = unstopped.drafter.engine.counters, pair.drafter.engine.counters
    assert after.early_stops > 0
    assert after.rolled_back_tokens < 0.5 * before.rolled_back_tokens
    assert free.counts is not None
    assert stopped.counts is not None
    assert stopped.counts.accepted > 0.6 * free.counts.accepted


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_easy_text_is_drafted_as_far(verifier_runner, drafter_runner, params) -> None:
    """A drafter that is always right soon runs to the end of its window again."""
    outcome, pair = _pair(verifier_runner, drafter_runner, params, "auto")
    assert outcome.counts is not None
    assert outcome.counts.accepted == outcome.counts.drafted
    assert pair.drafter.engine.counters.rolled_back_tokens == 0
    assert len(outcome.steps) < 35
    late = outcome.steps[-8:-1]
    assert sum(map(len, late)) / len(late) > 8


def _proposals(rig: DrafterRig) -> list[Proposal]:
    sent, rig.sent = rig.sent, []
    return [proposal for _, batch, _ in sent for proposal in batch]


def test_a_pause_is_announced(runner, monkeypatch) -> None:
    """With the last token before a pause, and again after a commit that leaves it in doubt; a
    commit that decides on all there is ends it."""
    monkeypatch.setattr("drafter_service.confidence._START", 0.0)
    rig = DrafterRig(runner, early_stop="on")
    rig.obey(opening(PROMPT, SEEDED))
    for _ in range(4):
        rig.step()
    assert [proposal.paused for proposal in _proposals(rig)] == [False] * 4
    assert rig.early_stop is not None
    rig.early_stop._thresholds[rig.draft()].value = 2.0
    rig.run()
    (last,) = _proposals(rig)
    assert last.paused
    ahead = rig.ahead()
    assert len(ahead) < 8
    rig.obey(rig.commit(PROMPT, *ahead[:2]))
    rig.run()
    (again,) = _proposals(rig)
    length = len(PROMPT) + len(ahead)
    assert (again.prefix.length, again.tokens, again.paused) == (length, (), True)
    assert rig.ahead() == ahead[2:]
    rig.obey(rig.commit([*PROMPT, *ahead[:2]], *ahead[2:]))
    rig.run()
    (more,) = _proposals(rig)
    assert (len(more.tokens), more.paused) == (1, True)
    rig.close_all()


def test_automatic_only_where_drafts_cost_something(runner, monkeypatch) -> None:
    """On a device of its own one sequence runs to the end of its window; sharing with the verifier
    or with another sequence it stops behind what it doubts."""
    monkeypatch.setattr("drafter_service.confidence._START", 2.0)
    rig = DrafterRig(runner, early_stop="auto")
    rig.obey(opening(PROMPT, SEEDED))
    rig.run()
    assert len(rig.ahead()) == 8
    rig.obey(opening(PROMPT, SEEDED, sequence_id=2))
    rig.run()
    assert len(rig.ahead(2)) == 1
    rig.close_all()
    rig.obey(SetPace(cores=(), burst=True), opening(PROMPT, SEEDED))
    rig.run()
    assert len(rig.ahead()) == 1
    assert rig.engine.counters.early_stops == 2
    rig.close_all()
