"""Question files: the shipped one, the choice of questions, and files that are not usable."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from slipstream.bench.questions import (
    DEFAULT_QUESTIONS,
    choose,
    load_questions,
    task_of,
)
from slipstream.bench.records import TASKS, Question
from slipstream.core.errors import ConfigurationError

GOOD = {"question_id": 1, "category": "qa", "turns": ["Why?", "And then?"]}


def test_shipped_prompts_cover_every_task_alike():
    """The default file has three questions of each task kind, short ones and long ones."""
    questions = load_questions(DEFAULT_QUESTIONS)
    assert Counter(question.task for question in questions) == dict.fromkeys(TASKS, 3)
    words = [len(question.text.split()) for question in questions]
    assert min(words) < 15
    assert max(words) > 350


def test_first_turns_are_taken(tmp_path):
    """Only the first turn is asked; MT-bench's categories count as chat; other fields are free."""
    chat = GOOD | {"question_id": 2, "category": "roleplay", "reference": ["x"]}
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(chat) + "\n")
    assert load_questions(path) == [
        Question("1", "qa", "Why?"),
        Question("2", "multi_turn", "Why?"),
    ]


def test_line_separators_within_a_text_are_kept(tmp_path):
    """U+2028 unescaped in a JSON string does not end the line."""
    path = tmp_path / "questions.jsonl"
    path.write_text(
        json.dumps(GOOD | {"turns": ["one\u2028two"]}, ensure_ascii=False),
        encoding="utf-8",
    )
    assert load_questions(path)[0].text == "one\u2028two"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"not json\n",
        b"[1, 2]\n",
        b"\xff\xfe\n",
        b'{"question_id": 1, "category": "qa"}',
        b'{"question_id": 1, "category": "qa", "turns": []}',
        b'{"question_id": 1, "category": "qa", "turns": "Why?"}',
        b'{"question_id": 1, "category": "qa", "turns": [7]}',
        b'{"question_id": 1, "category": "qa", "turns": ["  "]}',
        b'{"question_id": 1, "category": 3, "turns": ["Why?"]}',
        json.dumps(GOOD).encode() * 1 + b"\n" + json.dumps(GOOD).encode(),
    ],
)
def test_unusable_files_are_refused(tmp_path, content):
    """Each malformed file raises one clear error that names it."""
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"bad\.jsonl"):
        load_questions(path)


def test_missing_file_is_refused(tmp_path):
    """A path that is not there is a configuration error."""
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_questions(tmp_path / "none.jsonl")


def test_a_limit_takes_from_the_tasks_in_turn():
    """A small limit does not end up with one task only, and the rest comes in full."""
    questions = [Question(str(n), task, "?") for task in ("qa", "rag") for n in range(3)]
    assert [question.task for question in choose(questions, 4)] == [
        "qa",
        "rag",
        "qa",
        "rag",
    ]
    assert sorted(map(str, choose(questions, None))) == sorted(map(str, questions))
    assert [question.task for question in choose(questions[:4], 9)] == [
        "qa",
        "rag",
        "qa",
        "qa",
    ]


def test_tasks_are_known():
    """Every category falls into one of the six task kinds."""
    for category in ("writing", "math", "math_reasoning", "rag", "something else"):
        assert task_of(category) in TASKS
