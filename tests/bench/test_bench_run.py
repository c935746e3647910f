"""The order of a run, its settings, and what it collects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from slipstream.bench.configurations import Configuration, check_rows
from slipstream.bench.machine import cpu_seconds
from slipstream.bench.peer import speculation_of, up_to_eos
from slipstream.bench.records import ROWS, Generation, Prompt, Speculation
from slipstream.bench.run import BenchSettings, measure, order
from slipstream.core.errors import ConfigurationError


def test_every_row_gets_every_place_alike():
    """Over as many turns as rows (twice), each row is first, second... equally often."""
    rows = list("abcde")
    places = Counter(
        (place, row) for turn in range(10) for place, row in enumerate(order(rows, turn))
    )
    assert set(places.values()) == {2}
    assert len(places) == 25


def test_no_row_always_follows_the_same_one():
    """Neighbours change, so that one row's wake does not fall on the same other row."""
    rows = list("abcde")
    before = {
        turn_order[turn_order.index("b") - 1]
        for turn in range(10)
        if (turn_order := order(rows, turn))[0] != "b"
    }
    assert before == {"a", "c"}


async def test_every_configuration_answers_every_prompt_in_every_repeat(monkeypatch):
    """Samples carry row, repeat, question and result; warm-up is not among them."""
    asked = []

    def configuration(row):
        async def generate(prompt, max_tokens):
            asked.append((row, max_tokens))
            return Generation(tuple(prompt) * 2, 0.5, 0.1), None

        return Configuration(row, generate, frozenset())

    prompts = [
        Prompt("1", "qa", (4, 5)),
        Prompt("2", "rag", (6,)),
        Prompt("3", "rag", (7,)),
    ]
    lines: list[str] = []
    configurations = [configuration(row) for row in ("a", "b")]
    samples = await measure(configurations, prompts, 32, 2, lines.append)
    keys = [(sample.row, sample.repeat, sample.question_id) for sample in samples]
    assert sorted(keys) == [
        (row, repeat, name) for row in "ab" for repeat in (0, 1) for name in ("1", "2", "3")
    ]
    assert all(count == 1 for count in Counter(keys).values())
    assert next(s for s in samples if s.question_id == "1").generation.token_ids == (
        4,
        5,
        4,
        5,
    )
    assert asked[:4] == [("a", 16), ("a", 16), ("b", 16), ("b", 16)]
    assert asked.count(("a", 32)) == asked.count(("b", 32)) == 6
    assert lines[-1].startswith("6/6 question 3: ")


async def test_processor_time_of_the_others_is_taken(monkeypatch):
    """Only the processes of other rows count, and only between the ends of a generation."""
    clock = {1: 5.0, 2: 7.0}
    monkeypatch.setattr("slipstream.bench.run.cpu_seconds", clock.get)

    def configuration(row, pid, burns):
        async def generate(prompt, max_tokens):
            for process, seconds in burns.items():
                clock[process] += seconds
            return Generation((1,), 0.5, 0.1), None

        return Configuration(row, generate, frozenset({pid}))

    configurations = [
        configuration("a", 1, {1: 0.5}),
        configuration("b", 2, {1: 0.25, 2: 0.5}),
    ]
    samples = await measure(configurations, [Prompt("1", "qa", (4,))], 8, 1, lambda line: None)
    burnt = {sample.row: sample.others_cpu_seconds for sample in samples}
    assert burnt == {"a": 0.0, "b": 0.25}


def test_processor_time_of_a_process():
    """Our own has some; a process that is not there has none."""
    import os

    own = cpu_seconds(os.getpid())
    assert own is None or own > 0.0
    assert cpu_seconds(2**30) is None


@pytest.mark.parametrize(
    "field", [{"limit": 0}, {"repeats": 0}, {"max_tokens": 0}, {"rows": ()}, {"exactness": "some"}]
)
def test_settings_that_measure_nothing_are_refused(field):
    """Numbers below 1, no rows and unknown words are configuration errors."""
    paths = {
        "questions": Path("q"),
        "model": Path("m"),
        "model_name": "m",
        "out": Path("o"),
    }
    with pytest.raises(ConfigurationError):
        BenchSettings(**paths, **field)


def test_rows_are_checked_and_put_in_order():
    """Unknown names are refused; the order is that of the table."""
    assert check_rows(["transformers", "plain-1core"], ROWS) == (
        "plain-1core",
        "transformers",
    )
    with pytest.raises(ConfigurationError, match="fast"):
        check_rows(["transformers", "fast"], ROWS)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [([1, 2, 3, 2], (1, 2)), ([1, 3], (1, 3)), ([2], (2,)), ([], ())],
)
def test_nothing_after_the_end_is_counted(tokens, kept):
    """Tokens end with the first end-of-sequence token, which counts."""
    assert up_to_eos(tokens, frozenset({2})) == kept


def test_counts_of_prompt_lookup_come_from_the_widths_of_its_passes():
    """Rows beyond the prompt, and beyond one, are drafts; tokens beyond one a pass accepted."""
    assert speculation_of([12, 9, 1, 4], prompt_length=10, generated=9) == Speculation(4, 3, 13, 5)
    assert speculation_of([10, 1, 1], prompt_length=10, generated=3) == Speculation(3, 0, 0, 0)
