"""The adaptive drafter: finds better skip sets on spare time, and changes no token by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from drafter_service import adaptive as module
from drafter_service import trials
from drafter_service.adaptive import Adaptive
from drafter_service.trials import RUN, Candidates, Trial
from slipstream.core.draft import SetPace, SetWindow
from slipstream.core.layer_plan import Skips
from slipstream.core.params import SamplingParams
from slipstream.core.throughput import RunTally
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.engine.step_cost import StepCost, fit_step_cost
from tests.drafter.rig import DrafterRig, opening
from tests.drafter.test_both_engines import Pair
from tests.verifier.rig import GREEDY, VOCAB, Rig, plain, write_checkpoint

LAYERS = 4
# Sublayers whose weights are zero: without them the model is the same.
USELESS = Skips(attention=frozenset({2}), mlp=frozenset({1}))
WARM = SamplingParams(temperature=1.0, top_p=0.95, seed=12)
PROMPT = tuple(range(10, 60))
# Every sublayer costs as much; and one where it is agreement that counts.
EVEN = StepCost(0.001, 0.001, 0.001, LAYERS)
FLAT = StepCost(0.01, 1e-6, 1e-6, LAYERS)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four layers in which two inner sublayers do nothing."""
    folder = write_checkpoint(tmp_path_factory.mktemp("planted"), layers=LAYERS)
    file = folder / "model.safetensors"
    weights = load_file(file)
    for i in USELESS.attention:
        weights[f"model.layers.{i}.self_attn.o_proj.weight"].zero_()
    for i in USELESS.mlp:
        weights[f"model.layers.{i}.mlp.down_proj.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def _loaded(planted: Path, _one_thread: None) -> ModelRunner:
    return ModelRunner(load_model(planted), 1 << 21)


@pytest.fixture
def runner(_loaded: ModelRunner) -> Iterator[ModelRunner]:
    yield _loaded
    _loaded.loaded.skips.use(Skips())
    assert _loaded.pool.num_used == 0


@pytest.fixture
def verifier(planted: Path, _one_thread: None) -> Rig:
    return Rig(ModelRunner(load_model(planted), 1 << 21))


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch) -> None:
    """A verifier's step takes 50 ms, and spare work never rests."""
    monkeypatch.setattr(module, "median", lambda _: 0.05)
    monkeypatch.setattr(module, "_SHARE", float("inf"))


def serve(pair: Pair, params, max_tokens: int, *, prompts=1, most=40):
    """Serves prompts with the drafter running all it may between two steps of the verifier."""
    outcomes = [
        pair.verifier.submit(PROMPT[i:], params, max_tokens=max_tokens, ignore_eos=True)
        for i in range(prompts)
    ]

    def between() -> None:
        pair.collect()
        pair.drafter.obey(*pair.to_drafter, connection=1)
        pair.to_drafter.clear()
        for _ in range(most):
            if not pair.drafter.step():
                break
        pair.collect()
        for message in pair.to_verifier:
            pair.deliver(message)
        pair.to_verifier.clear()

    pair.verifier.finish(between)
    return outcomes


def pairing(verifier, runner, part) -> Pair:
    pair = Pair(verifier, DrafterRig(runner, adaptive=part))
    pair.connect()
    return pair


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "temperature 1"])
def test_finds_what_is_useless(verifier, runner, params) -> None:
    """It comes to skip just the sublayers that do nothing; every draft stays right meanwhile."""
    part = Adaptive(runner, EVEN)
    pair = pairing(verifier, runner, part)
    (outcome,) = serve(pair, params, 190)
    while runner.loaded.skips.current != USELESS and part.counters.trials < 300:
        (outcome,) = serve(pair, params, 190)
    assert runner.loaded.skips.current == USELESS
    assert part.counters.moves <= 4
    (outcome,) = serve(pair, params, 40)
    assert outcome.counts.accepted == outcome.counts.drafted > 20


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "temperature 1"])
def test_moves_away_from_a_bad_set(verifier, runner, params, monkeypatch) -> None:
    """Where cost hardly counts it leaves a set that is often wrong, without a restart or a changed
    token, and more drafts are accepted."""
    bad = Skips(attention=frozenset({1}), mlp=frozenset({0, 2, 3}))
    part = Adaptive(runner, FLAT, start=bad)
    pair = pairing(verifier, runner, part)
    expected = plain(verifier.runner, PROMPT, params, max_tokens=120, ignore_eos=True)
    rates = []
    monkeypatch.setattr(trials, "_WAY_BACK", 0.5)
    while part.counters.moves == 0 and part.counters.trials < 100:
        (outcome,) = serve(pair, params, 120, most=12)
        assert outcome.tokens == expected.tokens
        rates.append(outcome.counts.accepted / outcome.counts.drafted)
    assert part.counters.moves >= 1
    monkeypatch.setattr(part, "_try", lambda: False)
    (outcome,) = serve(pair, params, 120)
    assert outcome.tokens == expected.tokens
    assert outcome.counts.accepted / outcome.counts.drafted > rates[0]


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "temperature 1"])
def test_tokens_are_those_of_plain_decoding(verifier, runner, params, monkeypatch) -> None:
    """Sets that change all the time, several sequences at once: tokens of plain decoding."""
    monkeypatch.setattr(Trial, "verdict", lambda *_: True)
    part = Adaptive(runner, EVEN)
    pair = pairing(verifier, runner, part)
    outcomes = serve(pair, params, 80, prompts=3, most=12)
    assert part.counters.moves > 3
    for i, outcome in enumerate(outcomes):
        expected = plain(verifier.runner, PROMPT[i:], params, max_tokens=80, ignore_eos=True)
        assert outcome.tokens == expected.tokens
    pair.settle()


def _opened(runner, part, *, skips=None) -> tuple[DrafterRig, list[int]]:
    """A drafter at the end of its window, with some committed tokens behind it."""
    rig = DrafterRig(runner, adaptive=part)
    rig.obey(opening(PROMPT, GREEDY, max_length=200))
    history = list(PROMPT)
    for i in range(12):
        while rig.engine._ready() or rig.engine._inbox:
            rig.step()
        decided = [*rig.ahead()[:2], (5 * i) % VOCAB]
        rig.obey(rig.commit(history, *decided))
        history += decided
    return rig, history


def test_trials_leave_no_trace(runner) -> None:
    """After any number of trial runs keys, values and drafts are bit for bit what they were."""
    part = Adaptive(runner, EVEN)
    rig, _ = _opened(runner, part)
    while rig.engine._ready() or rig.engine._inbox:
        rig.step()
    kv, tokens = rig.kv(), list(rig.draft().sequence.tokens)
    passes = 0
    while part.counters.moves == 0 and rig.step():
        passes += 1
        assert torch.equal(rig.kv(), kv)
    assert passes > 4
    assert rig.draft().sequence.tokens == tokens
    rig.close_all()


def test_every_layer_has_the_context(runner, monkeypatch) -> None:
    """With sublayers skipped, committed positions still get the unskipped copy's keys and values
    in all layers; drafts keep their own."""
    part = Adaptive(runner, EVEN, start=Skips(frozenset({1}), frozenset({0, 2})))
    rig, history = _opened(runner, part)
    monkeypatch.setattr(part, "_try", lambda: False)
    rig.run()
    table = runner.pool.allocate(len(history))
    with runner.loaded.skips.using(Skips()):
        runner.forward([Segment(history[:-1], 0, table, 0)])
    expected = runner.pool.copy_rows(table, 0, len(history) - 1)
    runner.pool.release(table)
    mine = rig.draft().sequence.table
    found = runner.pool.copy_rows(mine, 0, len(history) - 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rig.close_all()


def test_spare_work_yields(runner, monkeypatch) -> None:
    """A spare pass has few rows, and what was asked meanwhile comes before the next one."""
    part = Adaptive(runner, EVEN)
    rig, history = _opened(runner, part)
    while rig.engine._ready() or rig.engine._inbox:
        rig.step()
    rows: list[int] = []
    forward = runner.forward
    monkeypatch.setattr(
        runner, "forward", lambda s: (rows.append(sum(len(x.tokens) for x in s)), forward(s))[1]
    )
    assert rig.step()
    assert len(rows) == 1
    assert rows[0] <= RUN
    rig.obey(rig.commit(history, *rig.ahead()[:3]))
    before = rig.engine.counters.drafted_tokens
    assert rig.step()
    assert len(rows) == 2
    assert rig.engine.counters.drafted_tokens == before + 1
    rig.close_all()


def test_no_spare_work_where_devices_are_shared(runner) -> None:
    """Told to draft in bursts, because the verifier computes on the same cores, it is idle."""
    part = Adaptive(runner, EVEN)
    rig, _ = _opened(runner, part)
    rig.obey(SetPace((), burst=True))
    rig.run()
    assert part.counters.trials == 0
    rig.obey(SetPace((), burst=False))
    rig.step()
    assert part.counters.trials == 1
    rig.close_all()


def test_failing_spare_work(runner, monkeypatch) -> None:
    """A fault in spare work ends spare work, not drafting."""
    part = Adaptive(runner, EVEN)
    rig, history = _opened(runner, part)
    monkeypatch.setattr(part, "_try", lambda: 1 / 0)
    rig.run()
    rig.obey(rig.commit(history, *rig.ahead()[:3]))
    rig.run()
    assert len(rig.ahead()) == 8
    assert rig.refusals() == []
    rig.close_all()


def test_verdicts() -> None:
    """A cheaper set that agrees as often wins after enough runs, a worse one is dropped early."""
    right, wrong = RunTally.of_run(RUN, RUN), RunTally.of_run(0, RUN)
    skips = Skips(mlp=frozenset({1, 2}))

    def trial(runs: int, ours: RunTally, theirs: RunTally) -> bool | None:
        found = Trial(skips)
        for _ in range(runs):
            found.ours += ours
            found.theirs += theirs
        return found.verdict(Skips(), StepCost(0.01, 0.001, 0.001, LAYERS), 0.1)

    assert trial(3, wrong, right) is None
    assert trial(4, wrong, right) is False
    assert trial(11, right, right) is None
    assert trial(12, right, right) is True
    assert trial(12, wrong, wrong) is False


def test_candidates_are_new_and_keep_both_ends() -> None:
    """Suggestions differ from the current set and from what was dropped, by the seed alone."""
    current = Skips(frozenset({2}), frozenset({3}))
    suggested = []
    for _ in range(2):
        candidates = Candidates(8, seed=5)
        found = []
        for _ in range(30):
            found.append(candidates.suggest(current))
            candidates.drop(found[-1])
        suggested.append(found)
    assert suggested[0] == suggested[1]
    assert len(set(suggested[0])) == 30
    assert current not in suggested[0]
    assert Skips() in suggested[0]
    assert all({0, 7}.isdisjoint(s.attention | s.mlp) for s in suggested[0])


def test_the_cost_of_a_step_is_fitted(runner) -> None:
    """Fewer sublayers never cost more, and all of them cost about what a step takes."""
    cost = fit_step_cost(runner, repeats=5)
    assert 0 < cost(Skips(frozenset(range(4)), frozenset(range(4)))) <= cost(USELESS)
    assert cost(USELESS) <= cost(Skips())
    assert runner.pool.num_used == 0


def test_commits_told_together_are_no_measure_of_a_step(runner) -> None:
    """Without a window a verifier tells of many steps at once: that gap is not a step's time."""
    part = Adaptive(runner, EVEN)
    rig, history = _opened(runner, part)
    rig.run()
    known = len(part._gaps)
    rig.obey(SetWindow(rig.draft().key.sequence_id, 0))
    rig.run()
    for _ in range(3):
        rig.obey(rig.commit(history, *PROMPT[:16]))
        history = [*history, *PROMPT[:16]]
    rig.run()
    assert len(part._gaps) == known
    rig.close_all()


def test_what_the_verifier_gives_is_not_computed_again(runner) -> None:
    """Positions that came from the verifier count as filled; once no more come, the rest is filled
    by passes that skip nothing."""
    start = Skips(mlp=frozenset({1}))
    taken: list[int | None] = [2]
    part = Adaptive(runner, EVEN, start=start, taken=lambda _: taken[0])
    rig, _ = _opened(runner, part)
    part._known[rig.draft()].filled = 1
    assert not part._fill()
    assert part._known[rig.draft()].filled == 2
    taken[0] = None
    assert part._fill()
    assert part._known[rig.draft()].filled > 2
    rig.close_all()
