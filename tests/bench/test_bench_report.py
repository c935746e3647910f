"""The bars, the table and the JSON file, from made-up measurements."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from slipstream.bench.aggregate import aggregate
from slipstream.bench.machine import Memory, describe_machine
from slipstream.bench.records import EngineCost, Speculation
from slipstream.bench.report import document, show, verdicts, write
from slipstream.bench.rows import ROWS
from slipstream.bench.summary import summarize
from slipstream.core.errors import ConfigurationError
from slipstream.core.ideal import best_ideal

SPEEDS = {
    "plain-1core": 30.0,
    "plain-allcores": 54.0,
    "speculative-separate": 48.0,
    "speculative-shared": 50.0,
    "speculative-best": 96.0,
    "transformers": 30.0,
    "transformers-pld": 40.0,
    "plain-int8-1core": 50.0,
    "int8-separate": 70.0,
    "plain-int8": 60.0,
    "speculative-int8": 75.0,
    "drafter-random": 29.4,
    "drafter-slow": 28.5,
    "drafter-whole": 100.0,
    "drafter-2shards": 91.0,
}
MEMORY = {
    "base": Memory(250, 80),
    "one-core-drafter": Memory(400, 200),
    "shards-shard0": Memory(300, 120),
    "shards-shard1": Memory(310, 130),
    "transformers": Memory(900, 800),
}


@pytest.fixture
def measured(sample):
    def make(rows=ROWS, outside=0.04, strict=True):
        samples = []
        for row in rows:
            counts = engine = None
            if row == "speculative-separate":
                counts = Speculation(steps=40, spec_steps=30, drafted=90, accepted=80)
            if row in ("plain-1core", "speculative-separate"):
                engine = EngineCost(40, 1.2, 1.2 * (1.0 - outside), 0.05, 0.01)
            together = 4 if row in ("drafter-whole", "drafter-2shards") else 1
            for question, task in enumerate(("qa", "rag") * 2):
                # Retrieval is a quarter slower with the best row, and nothing else.
                slow = 1.25 if (task, row) == ("rag", "speculative-best") else 1.0
                samples.append(
                    sample(
                        row,
                        question=str(question),
                        task=task,
                        tokens=120,
                        seconds=slow * together * 120 / SPEEDS[row],
                        speculation=counts,
                        engine=engine,
                        others=0.0,
                        at_once=together,
                    )
                )
        results = aggregate(samples, rows)
        return results, summarize(results, samples, MEMORY, strict=strict)

    return make


def test_bars_compare_the_right_rows(measured):
    """Each figure is of the rows that its name says, and met as wanted."""
    _, summary = measured()
    figures = {bar.name: (bar.measured, bar.met) for bar in summary.bars}
    best = 96.0 * 2 / 2.25
    assert figures == {
        "plain-allcores / transformers": (pytest.approx(1.8), True),
        "speculative-separate / plain-1core": (pytest.approx(1.6), False),
        "speculative-best / transformers": (pytest.approx(best / 30), False),
        "speculative-best / transformers-pld": (pytest.approx(best / 40), True),
        "int8-separate / plain-int8-1core": (pytest.approx(1.4), True),
        "speculative-int8 / plain-int8": (pytest.approx(1.25), False),
        "drafter-random / plain-1core": (pytest.approx(0.98), True),
        "drafter-slow / plain-1core": (pytest.approx(0.95), False),
        "drafter-2shards / drafter-whole": (pytest.approx(0.91), True),
        "speculative-best / transformers, least of a task": (pytest.approx(2.56), True),
        "share of the ideal": (pytest.approx(summary.ideal.fraction), False),
        "share of a verify step outside the model": (pytest.approx(0.04), True),
        "memory for the model: a shard / the whole": (pytest.approx(50 / 120), True),
        "answers that differ where none may": (0, True),
    }


def test_answers_may_differ_where_a_verifier_is_not_strict(measured, sample):
    """One wrong answer of any of our rows misses the bar; in fast mode the bar stays open. The
    int8 rows answer for themselves, and transformers for nobody."""
    results, _ = measured()
    samples = [sample("plain-1core"), sample("drafter-random"), sample("transformers", first_id=5)]
    samples += [sample("plain-int8", first_id=9), sample("speculative-int8", first_id=9)]
    for wrong in ("drafter-2shards", "speculative-int8"):
        for strict, met in ((True, False), (False, None)):
            more = [*samples, sample(wrong, first_id=3)]
            assert summarize(results, more, {}, strict=strict).bars[-1].met is met
    assert summarize(results, samples, {}, strict=True).bars[-1].met is True


def test_too_much_time_outside_the_model_misses_the_bar(measured):
    """That bar is an upper one."""
    _, summary = measured(outside=0.06)
    assert next(bar for bar in summary.bars if "outside" in bar.name).met is False


def test_ideal_is_taken_at_the_measured_acceptance_and_ratio(measured):
    """c comes from the step times, a from the counts, the measured from the rows."""
    results, summary = measured()
    assert summary.ideal is not None
    acceptance = next(r.token_acceptance for r in results if r.name == "speculative-separate")
    assert acceptance is not None
    assert summary.ideal.speed_ratio == pytest.approx(3.0)
    assert summary.ideal.ideal_speedup == pytest.approx(best_ideal(acceptance, 3.0).speedup)
    assert summary.ideal.fraction == pytest.approx(1.6 / summary.ideal.ideal_speedup)
    # With a whole ratio a free-running drafter changes nothing.
    assert summary.ideal.free_running_speedup == pytest.approx(summary.ideal.ideal_speedup)


def test_rows_left_out_leave_bars_open(measured):
    """Without the rows of a bar it is neither met nor missed, and there is no ideal."""
    _, summary = measured(rows=("transformers", "plain-allcores"))
    met = {bar.name: bar.met for bar in summary.bars if not bar.name.startswith("memory")}
    assert {name for name, value in met.items() if value is not None} == {
        "plain-allcores / transformers"
    }
    assert summary.ideal is None
    assert "not measured" in verdicts(summary)[1]


def test_outputs_are_compared_between_rows(measured, sample):
    """Differences show in the lines and are named by their rows."""
    results, _ = measured()
    samples = [
        sample("plain-1core"),
        sample("speculative-separate", first_id=3),
        sample("transformers"),
    ]
    lines = verdicts(summarize(results, samples, {}, strict=False))
    assert "plain-1core vs speculative-separate: 1 of 1 questions with different tokens" in lines
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
        assert f"{speed:.1f}" in text or row == "speculative-best"
    assert "drafter-2shards x4" in text
    assert "speculative-separate / plain-1core: 1.600 (>= 1.8: NOT MET)" in text
    assert "plain-allcores / transformers: 1.800 (>= 1.8: met)" in text
    assert "0.889" in text


def test_json_has_the_agreed_fields(tmp_path, measured):
    """The file is strict JSON with rows, summary and machine, nulls where nothing is known."""
    results, summary = measured()
    path = tmp_path / "deep" / "bench.json"
    write(path, document(results, summary, MEMORY, describe_machine(2), {"repeats": 1}))
    content = json.loads(path.read_text())
    rows = {row["name"]: row for row in content["rows"]}
    assert list(rows) == list(ROWS)
    assert rows["speculative-separate"]["acceptance_rate"] == pytest.approx(8 / 9)
    assert rows["speculative-separate"]["mean_acceptance_length"] == pytest.approx(1 + 80 / 30)
    assert rows["transformers"]["acceptance_rate"] is None
    assert rows["transformers"]["tokens_per_second_by_task"] == {
        "qa": pytest.approx(30.0),
        "rag": pytest.approx(30.0),
    }
    assert [bar["met"] for bar in content["summary"]["bars"]] == [bar.met for bar in summary.bars]
    assert content["memory_bytes"]["shards-shard0"] == {"resident": 300, "private": 120}
    assert rows["drafter-2shards"]["at_once"] == 4
    assert content["summary"]["ideal"]["measured_speedup"] == pytest.approx(1.6)
    assert content["summary"]["differing_questions"]["plain-1core vs speculative-separate"] == 0
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
