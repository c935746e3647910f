"""The end of a storm: what is wrong is counted, told, and turned into an exit code."""

from __future__ import annotations

import json

from tests.chaos.answers import Answer
from tests.chaos.crowd import Outcome
from tests.chaos.report import Report, quantile
from tests.chaos.schedule import Fault
from tests.chaos.session_client import SessionLog
from tests.chaos.storm import Struck
from tests.chaos.verdict import Finding, Turn, Verdict


def outcome(verdict=Verdict.RIGHT, arrivals=(), **ways):
    answer = Answer(arrivals=list(arrivals))
    answer.ways.update(ways)
    return Outcome("ask-1/0", "stream", Finding(verdict, "why"), answer)


def test_one_wrong_thing_is_enough():
    """Nothing wrong is 0; any verdict but right, a lost turn, a process that ended by itself, or a
    thing still held is 1. Nothing done is no success."""
    assert Report(1, outcomes=[outcome()]).exit_code == 0
    assert Report(1).exit_code == 1
    for verdict in Verdict:
        found = Report(1, outcomes=[outcome(), outcome(verdict)])
        assert found.exit_code == int(verdict is not Verdict.RIGHT)
    kept = {"s": Finding(Verdict.LOST, "1 of 2 turns are stored")}
    for wrong in (
        {"sessions_kept": kept},
        {"wrong_processes": ["verifier-0 ended by itself"]},
        {"held": ["0: verifier, in use: sequences: 1"]},
    ):
        report = Report(1, outcomes=[outcome()], **wrong)
        assert report.exit_code == 1
        assert "WRONG, 1:" in report.lines()


def test_figures(tmp_path):
    """Faults by kind and target, ways, pauses, sessions: in the table and in the file."""
    faults = [
        Struck(Fault(1.0, "kill", "verifier-1", 0.5)),
        Struck(Fault(2.0, "blackout", "verifiers", 0.5)),
        Struck(Fault(3.0, "cut", "gateway-0>verifier-1", 0.5)),
        Struck(Fault(4.0, "kill", "verifier-0", 0.5), "no other verifier serves now"),
    ]
    report = Report(
        7,
        struck=faults,
        outcomes=[outcome(arrivals=[0.0, 1.0, 5.0], resumed=2), outcome(arrivals=[0.0, 0.5])],
        sessions=[SessionLog("7-d-0", 0.0, [Turn("a", "b")]), SessionLog("7-d-1", 0.0)],
        counters={"slipstream:failovers_total{lost}": 3},
    )
    report.write(tmp_path / "new" / "chaos.json")
    content = json.loads((tmp_path / "new" / "chaos.json").read_text())
    assert content["faults"] == {
        "kill": {"verifier": 1}, "blackout": {"verifier": 1}, "cut": {"link": 1},
    }  # fmt: skip
    assert content["left_out"] == 1
    assert len(content["schedule"]) == 4
    assert content["ways"] == {"resumed": 2}
    assert content["pauses_seconds"] == {"p50": 4.0, "p95": 4.0, "max": 4.0}
    assert content["sessions"]["begun_again"] == content["sessions"]["turns_acknowledged"] == 1
    assert content["verdicts"]["right"] == content["generations"] == 2
    text = "\n".join(report.lines())
    assert "failovers_total{lost}: 3" in text
    assert "nothing is wrong" in text
    assert quantile([], 0.5) == 0.0
