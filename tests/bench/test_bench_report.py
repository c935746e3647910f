"""The bars, the table and the JSON file, from made-up measurements."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from slipstream.bench.aggregate import aggregate
from slipstream.bench.machine import describe_machine
from slipstream.bench.records import ROWS, EngineCost, Speculation
from slipstream.bench.report import document, show, verdicts, write
from slipstream.bench.summary import summarize
from slipstream.core.errors import ConfigurationError
from slipstream.core.ideal import best_ideal

SPEEDS = {
    "plain-1core": 30.0,
    "plain-allcores": 54.0,
    "speculative": 48.0,
    "transformers": 30.0,
    "transformers-pld": 36.0,
}


@pytest.fixture
def measured(sample):
    def make(rows=ROWS, outside=0.04):
        samples = []
        for row in rows:
            counts = engine = None
            if row == "speculative":
                counts = Speculation(steps=40, spec_steps=30, drafted=90, accepted=80)
            if row in ("plain-1core", "speculative"):
                engine = EngineCost(40, 1.0, 1.0 - outside, 0.03, 0.01)
            seconds = 120 / SPEEDS[row]
            samples.append(
                sample(
                    row,
                    tokens=120,
                    seconds=seconds,
                    speculation=counts,
                    engine=engine,
                    others=0.0,
                )
            )
        results = aggregate(samples, rows)
        return results, summarize(results, samples)

    return make


def test_bars_compare_the_right_rows(measured):
    """Each ratio is of the rows that its name says, and met as wanted."""
    _, summary = measured()
    figures = {bar.name: (bar.measured, bar.met) for bar in summary.bars}
    assert figures == {
        "speculative / plain-1core": (pytest.approx(1.6), True),
        "speculative / transformers": (pytest.approx(1.6), False),
        "plain-allcores / transformers": (pytest.approx(1.8), True),
        "share of a verify step outside the model": (pytest.approx(0.04), True),
    }


def test_too_much_time_outside_the_model_misses_the_bar(measured):
    """The last bar is an upper one."""
    _, summary = measured(outside=0.06)
    assert summary.bars[-1].met is False


def test_ideal_is_taken_at_the_measured_acceptance_and_ratio(measured):
    """c comes from the step times, a from the counts, the measured from the rows."""
    results, summary = measured()
    assert summary.ideal is not None
    acceptance = next(row.token_acceptance for row in results if row.name == "speculative")
    assert acceptance is not None
    assert summary.ideal.speed_ratio == pytest.approx(3.0)
    assert summary.ideal.ideal_speedup == pytest.approx(best_ideal(acceptance, 3.0).speedup)
    assert summary.ideal.fraction == pytest.approx(1.6 / summary.ideal.ideal_speedup)


def test_rows_left_out_leave_bars_open(measured):
    """Without the rows of a bar it is neither met nor missed, and there is no ideal."""
    _, summary = measured(rows=("transformers", "plain-allcores"))
    assert [bar.met for bar in summary.bars] == [None, None, True, None]
    assert summary.ideal is None
    assert "not measured" in verdicts(summary)[0]


def test_outputs_are_compared_between_rows(measured, sample):
    """Differences show in the lines and are named by their rows."""
    results, _ = measured()
    samples = [
        sample("plain-1core"),
        sample("speculative", first_id=3),
        sample("transformers"),
    ]
    lines = verdicts(summarize(results, samples))
    assert "plain-1core vs speculative: 1 of 1 questions with different tokens" in lines
    assert "plain-1core vs transformers: 0 of 1 questions with different tokens" in lines


def test_table_and_lines_are_whole_on_a_narrow_output(measured):
    """Every row name, figure and verdict is there uncut on an 80-column output."""
    results, summary = measured()
    output = io.StringIO()
    show(results, summary, Console(file=output, width=80))
    text = output.getvalue()
    assert "…" not in text
    for row, speed in SPEEDS.items():
        assert row in text
        assert f"{speed:.1f}" in text
    assert "speculative / transformers: 1.600 (>= 1.7: NOT MET)" in text
    assert "plain-allcores / transformers: 1.800 (>= 1.8: met)" in text
    assert "0.889" in text


def test_json_has_the_agreed_fields(tmp_path, measured):
    """The file is strict JSON with rows, summary and machine, nulls where nothing is known."""
    results, summary = measured()
    path = tmp_path / "deep" / "bench.json"
    write(path, document(results, summary, describe_machine(2), {"repeats": 1}))
    content = json.loads(path.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == list(ROWS)
    assert rows["speculative"]["acceptance_rate"] == pytest.approx(8 / 9)
    assert rows["speculative"]["mean_acceptance_length"] == pytest.approx(1 + 80 / 30)
    assert rows["transformers"]["acceptance_rate"] is None
    assert rows["transformers"]["tokens_per_second_by_task"] == {"qa": pytest.approx(30.0)}
    assert [bar["met"] for bar in content["summary"]["bars"]] == [
        True,
        False,
        True,
        True,
    ]
    assert content["summary"]["ideal"]["measured_speedup"] == pytest.approx(1.6)
    assert content["summary"]["differing_questions"]["plain-1core vs speculative"] == 0
    assert {
        "cpu_model",
        "cores",
        "memory_gib",
        "torch",
        "transformers",
        "threads",
        "date",
    } <= set(content["machine"])
    assert content["machine"]["threads"] == 2


def test_unwritable_target_is_a_clear_error(tmp_path):
    """A file where a folder should be is named in the error."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write"):
        write(tmp_path / "file" / "bench.json", {})
