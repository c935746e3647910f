"""`slipstream bench serve`: its figures and bars, on a stack whose verifier has no model."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from slipstream.bench.leaks import Watched, leaked
from slipstream.bench.load import batch, long_prompt, overload, second_turn, serve, sweep
from slipstream.bench.load.asks import Dialogue
from slipstream.bench.load.outcomes import Verdict
from slipstream.bench.load.serve import ServeSettings
from slipstream.bench.load.statistics import Slo, figures
from slipstream.bench.load.sweep_report import content, draw, table
from slipstream.bench.load.workload import WorkloadSettings
from slipstream.bench.services import Verifier
from slipstream.cli.main import app
from slipstream.core.errors import ConfigurationError, Overloaded
from slipstream.wire.proto import verifier_pb2_grpc
from slipstream.wire.transport import channel
from tests.load.conftest import DIALOGUES, answer
from tests.load.test_statistics import made


@pytest.fixture
async def staged(served, tmp_path, monkeypatch):
    """Settings for runs in which every stack is the fake one; nothing else is replaced."""

    @asynccontextmanager
    async def started(settings, name, options, progress, *, drafter=True):
        async with channel(served.fake.address) as link:
            verifier = Verifier(verifier_pb2_grpc.VerifierServiceStub(link))
            yield SimpleNamespace(
                door=served.door,
                http=served.http,
                verifier=verifier,
                pids=dict,
                model=name,
                watched=lambda: Watched(verifier=served.fake.address),
            )

    for module in (sweep, batch, long_prompt, second_turn, overload):
        monkeypatch.setattr(module, "started", started)
    for module in (sweep, overload):
        monkeypatch.setattr(module, "workload", lambda _: DIALOGUES)
    questions = tmp_path / "questions.jsonl"
    lines = [{"question_id": i, "category": "qa", "turns": [f"the fox {i}"]} for i in range(16)]
    questions.write_text("\n".join(map(json.dumps, lines)))
    settings = WorkloadSettings(questions, None, 0, 12)
    return ServeSettings(tmp_path, "fake", tmp_path / "serve.json", settings, (20.0, 60.0), 0.5)


@pytest.fixture
def short(monkeypatch):
    """A long prompt that is short, among streams that are, and short answers."""
    one_turn = [Dialogue("long-0", "chat", ("a fox",), (4,), ignore_eos=True)]
    monkeypatch.setattr(long_prompt, "long_dialogues", lambda *_: one_turn)
    monkeypatch.setattr(long_prompt, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(long_prompt, "_BEFORE_SECONDS", 0.2)
    monkeypatch.setattr(long_prompt, "_KNOWN_TOKENS", 20)
    monkeypatch.setattr(long_prompt, "_STREAM_TOKENS", 900)
    monkeypatch.setattr(batch, "_TOKENS", 20)


def say(_: str) -> None:
    pass


async def test_a_sweep_asks_every_mode_the_same(staged, monkeypatch):
    """At each rate all three modes get the same number of requests, all right; bars for each rate,
    and a table, a JSON and a picture of it."""
    monkeypatch.setattr(sweep, "_WARM_UP_SECONDS", 0.2)
    points, bars, outcomes = await sweep.sweep(staged, say)
    assert {(point.rate, point.mode) for point in points} == {
        (rate, mode) for rate in (20.0, 60.0) for mode in ("off", "on", "automatic")
    }
    for rate in (20.0, 60.0):
        (count,) = {point.figures.requests for point in points if point.rate == rate}
        assert count >= 8
    assert {each.verdict for each in outcomes} == {Verdict.RIGHT}
    assert [bar.measured is not None for bar in bars] == [True] * 6
    assert (bars[-1].measured, bars[-1].met) == (0, True)
    assert table(points).row_count == 6
    found = serve.document(serve.Findings("sweep", bars, content(points)), staged, outcomes)
    assert json.loads(json.dumps(found, allow_nan=False))["points"][0]["ttft"]["p95"] > 0
    draw(staged.out.with_suffix(".png"), points)
    assert staged.out.with_suffix(".png").stat().st_size > 10_000


async def test_a_wrong_token_in_a_sweep_is_a_fault(staged, served, monkeypatch):
    """One token planted after the answers are known is counted, and its bar is not met."""
    monkeypatch.setattr(sweep, "_WARM_UP_SECONDS", 0.2)
    right = served.fake.behaviour

    def plant(line: str) -> None:
        if line.startswith("warming up"):
            wrong = lambda p, s, n: answer(p, s, n) + (n == 11)  # noqa: E731
            served.fake.behaviour = replace(right, tokens=wrong)

    _, bars, outcomes = await sweep.sweep(staged, plant)
    assert bars[-1].met is False
    assert {each.name for each in outcomes if each.verdict is Verdict.WRONG} == {"three/0"}


def test_automatic_is_held_against_the_better_of_both():
    """The ratio is to the faster of on and off, in tokens/s and in p95 TPOT, each by itself."""

    def point(mode, tokens, e2e):
        some = [made(due=0, e2e=e2e, ttft=0.0, tokens=tokens)]
        return sweep.Point(2.0, mode, figures(some, Slo(), 10.0))

    points = [point("off", 100, 9.9), point("on", 200, 39.8), point("automatic", 190, 18.9)]
    speed, tpot = sweep.bars(points)
    assert speed.measured == pytest.approx(190 / 200)
    assert tpot.measured == pytest.approx((9.9 / 99) / (18.9 / 189))
    assert (speed.met, tpot.met) == (False, True)
    assert [bar.measured for bar in sweep.bars(points[:2])] == [None, None]


async def test_scenarios_measure_what_they_say(staged, short, monkeypatch):
    """Batch, long prompt and second turn run to their bars with right answers only."""
    long = [Dialogue("long-0", "chat", ("a fox", "and?"), (4, 3), ignore_eos=True)]
    monkeypatch.setattr(second_turn, "long_dialogues", lambda *_: long)
    for run in (batch.batch, long_prompt.long_prompt, second_turn.second_turn):
        findings, outcomes = await run(staged, say)
        faults = next(bar for bar in findings.bars if bar.name.startswith("wrong"))
        assert faults.met, findings
        assert outcomes
        json.dumps(findings.figures, allow_nan=False)
        if run is not batch.batch:
            assert findings.bars[0].measured is not None
        else:
            # A fake has no steps to compare gaps with.
            assert [bar.measured is None for bar in findings.bars] == [False, True] * 2 + [
                False
            ] * 2


async def test_a_stream_that_strays_beside_a_long_prompt_is_found(staged, short, served):
    """The beginning of every stream is compared, though it runs on beyond what is known."""

    def plant(line: str) -> None:
        if line.startswith("repeat"):
            wrong = lambda p, s, n: answer(p, s, n) + (n == 19)  # noqa: E731
            served.fake.behaviour = replace(served.fake.behaviour, tokens=wrong)

    findings, outcomes = await long_prompt.long_prompt(staged, plant)
    assert sum(each.verdict is Verdict.WRONG for each in outcomes) == 16
    assert findings.bars[-1].met is False


async def test_what_a_load_leaves_behind_is_a_bar(staged, short, served, monkeypatch):
    """After a scenario services are asked what they still hold, and one sequence that nobody
    ended is one too many."""

    async def planted(watched, before, **how):
        served.fake.running += 1
        try:
            return await leaked(watched, before, seconds=0.1, **how)
        finally:
            served.fake.running -= 1

    monkeypatch.setattr(serve, "leaked", planted)
    monkeypatch.setattr(sweep, "_WARM_UP_SECONDS", 0.2)
    one_turn = [Dialogue("long-0", "chat", ("a fox",), (4,), ignore_eos=True)]
    monkeypatch.setattr(second_turn, "long_dialogues", lambda *_: one_turn)
    found = {}
    # All of them start their stacks in one way.
    findings, _ = await second_turn.second_turn(staged, say)
    found[findings.name] = findings.bars
    lines = []
    _, found["sweep"], _ = await sweep.sweep(staged, lines.append)
    for name, bars in found.items():
        [bar] = [bar for bar in bars if "left behind" in bar.name]
        assert (bar.measured, bar.met) == (3 if name == "sweep" else 1, False), name
    assert "left behind by off: verifier, in use: requests running: 1" in lines[-3]


async def test_overload_counts_refusals_apart(staged, served, monkeypatch):
    """Whoever is refused is refused fast, the others are right; calm stretches refuse nobody."""
    monkeypatch.setattr(overload, "_OVERLOAD_SECONDS", 1.5)
    monkeypatch.setattr(overload, "_BACK_SECONDS", 0.5)
    monkeypatch.setattr(overload, "_ALONE_SECONDS", 0.2)
    monkeypatch.setattr(overload, "_TIMES_CAPACITY", 8.0)
    fake = served.fake

    def bounded(prompt, params, place):
        if place == 0 and fake.running > 4 and hard:
            raise Overloaded("full", retry_after=1.0)
        return answer(prompt, params, place)

    hard = []
    fake.behaviour = replace(fake.behaviour, tokens=bounded, delay=0.02)

    def tell(line: str) -> None:
        if " x that for" in line:
            hard.append(line)
        elif line.startswith("the end"):
            hard.clear()

    findings, outcomes = await overload.overload(replace(staged, rates=(10.0,)), tell)
    verdicts = findings.figures["during"]["verdicts"]
    assert set(verdicts) == {"right", "refused"}
    bars = {bar.name: bar for bar in findings.bars}
    assert bars["wrong, truncated or missing answers"].met
    assert bars["requests refused while it was calm"].met
    refusals = findings.figures["refusals"]
    assert refusals["count"] == verdicts["refused"]
    assert bars["slowest refusal, s"].measured == refusals["most"]
    assert all(each.retry_after is not None for each in outcomes if each.verdict == "refused")


def test_the_command_refuses_what_it_cannot_run(tmp_path):
    """Bad numbers end with a message before anything is started."""
    with pytest.raises(ConfigurationError, match="rates"):
        ServeSettings(tmp_path, "m", tmp_path / "o", WorkloadSettings(), rates=(0.0,))
    ended = CliRunner().invoke(app, ["bench", "serve", "--scenario", "nothing"])
    assert ended.exit_code == 2
