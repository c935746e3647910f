"""The order of a run, its settings, and what it collects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from slipstream.bench.configurations import Configuration
from slipstream.bench.machine import cpu_seconds
from slipstream.bench.measure import measure, memory_of, order, warm_up
from slipstream.bench.peer import speculation_of, up_to_eos
from slipstream.bench.records import Generation, Prompt, Speculation
from slipstream.bench.rows import check_rows
from slipstream.bench.run import BenchSettings
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


def configuration(row, asked, *, at_once=1, processes=None, clock=None, burns=None):
    """Answers with its prompts twice over; the k-th of those side by side takes k half seconds."""

    async def generate(prompts, max_tokens):
        asked.append((row, len(prompts), max_tokens))
        for process, seconds in (burns or {}).items():
            clock[process] += seconds
        return [
            Generation(tuple(prompt) * 2, 0.5 * place, 0.1)
            for place, prompt in enumerate(prompts, start=1)
        ], None

    return Configuration(row, generate, processes or {}, at_once)


PROMPTS = [Prompt("1", "qa", (4, 5)), Prompt("2", "rag", (6,)), Prompt("3", "rag", (7,))]


async def test_every_configuration_answers_every_prompt_in_every_repeat():
    """Samples carry row, repeat, question and result; warm-up is not among them."""
    asked, lines = [], []
    configurations = [configuration(row, asked) for row in ("a", "b")]
    await warm_up(configurations, PROMPTS, 32, lines.append)
    assert asked == [("a", 1, 32), ("a", 1, 32), ("b", 1, 32), ("b", 1, 32)]
    asked.clear()
    samples = await measure(configurations, PROMPTS, 32, 2, lines.append)
    keys = [(sample.row, sample.repeat, sample.question_id) for sample in samples]
    assert sorted(keys) == [
        (row, repeat, name) for row in "ab" for repeat in (0, 1) for name in ("1", "2", "3")
    ]
    first = next(s for s in samples if s.question_id == "1")
    assert first.generation.token_ids == (4, 5, 4, 5)
    assert first.share_seconds == 0.5
    assert asked.count(("a", 1, 32)) == asked.count(("b", 1, 32)) == 6
    assert lines[-1].startswith("6/6 question 3: ")


async def test_some_configurations_answer_several_prompts_at_once():
    """Two at once get the first two prompts together, the odd one out is left out; each has half
    of the time that both took."""
    asked = []
    both = [configuration("a", asked), configuration("pair", asked, at_once=2)]
    samples = await measure(both, PROMPTS, 8, 1, lambda line: None)
    assert asked == [("a", 1, 8), ("a", 1, 8), ("pair", 2, 8), ("a", 1, 8)]
    pair = [sample for sample in samples if sample.row == "pair"]
    assert [(s.question_id, s.at_once, s.share_seconds) for s in pair] == [
        ("1", 2, 0.5),
        ("2", 2, 0.5),
    ]
    asked.clear()
    await measure([configuration("four", asked, at_once=4)], PROMPTS, 8, 1, lambda line: None)
    assert asked == [("four", 3, 8)]


async def test_processor_time_of_the_others_is_taken(monkeypatch):
    """Only the processes of other rows count, and only between the ends of a generation."""
    clock = {1: 5.0, 2: 7.0}
    monkeypatch.setattr("slipstream.bench.measure.cpu_seconds", clock.get)
    both = [
        configuration("a", [], processes={"x": 1}, clock=clock, burns={1: 0.5}),
        configuration("b", [], processes={"y": 2}, clock=clock, burns={1: 0.25, 2: 0.5}),
    ]
    samples = await measure(both, PROMPTS[:1], 8, 1, lambda line: None)
    burnt = {sample.row: sample.others_cpu_seconds for sample in samples}
    assert burnt == {"a": 0.0, "b": 0.25}


def test_memory_is_that_of_the_processes():
    """Of each process by name; what cannot be read is left out."""
    import os

    mine = configuration("a", [], processes={"me": os.getpid(), "gone": 2**30})
    held = memory_of([mine])
    if held:
        assert held.keys() == {"me"}
        assert 10**7 < held["me"].private <= held["me"].resident


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
    names = [row.name for row in check_rows(["transformers", "plain-1core"])]
    assert names == ["plain-1core", "transformers"]
    with pytest.raises(ConfigurationError, match="fast"):
        check_rows(["transformers", "fast"])


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
