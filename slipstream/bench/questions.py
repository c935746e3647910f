"""Question files in Spec-Bench's format, and their prompts as token ids."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slipstream.bench.records import TASKS, Prompt, Question
from slipstream.core.errors import ConfigurationError

DEFAULT_QUESTIONS = Path(__file__).with_name("prompts.jsonl")


def task_of(category: str) -> str:
    """The task kind of a category: Spec-Bench keeps MT-bench's categories for its chat task."""
    return category if category in TASKS else "multi_turn"


def _question(path: Path, number: int, line: str) -> Question:
    where = f"{path}, line {number}"
    try:
        entry = json.loads(line)
        turns, category = entry["turns"], entry["category"]
        question_id = entry.get("question_id", number)
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise ConfigurationError(
            f"{where}: not a JSON object with `turns` and `category`"
        ) from failure
    if not isinstance(turns, list) or not turns or not isinstance(turns[0], str):
        raise ConfigurationError(f"{where}: `turns` must be a list of strings, at least one")
    if not turns[0].strip() or not isinstance(category, str):
        raise ConfigurationError(f"{where}: an empty first turn, or a `category` that is no string")
    return Question(str(question_id), task_of(category), turns[0])


def load_questions(path: Path) -> list[Question]:
    """Reads a question file (JSON lines with `question_id`, `category`, `turns`).

    Raises:
        ConfigurationError: the file is missing, empty, not UTF-8 or not in that format.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigurationError(f"cannot read the question file {path}: {failure}") from failure
    # Not splitlines: texts hold line separators that JSON need not escape.
    lines = enumerate(text.split("\n"), start=1)
    questions = [_question(path, number, line) for number, line in lines if line.strip()]
    if not questions:
        raise ConfigurationError(f"the question file {path} holds no question")
    if len({question.question_id for question in questions}) < len(questions):
        raise ConfigurationError(f"the question file {path} has a question_id twice")
    return questions


def choose(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` questions, taken from the tasks in turn so that each has its share."""
    by_task: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_task[question.task].append(question)
    longest = max((len(group) for group in by_task.values()), default=0)
    chosen = [
        group[place] for place in range(longest) for group in by_task.values() if place < len(group)
    ]
    return chosen if limit is None else chosen[:limit]


def encode(
    questions: Sequence[Question], model: Path, max_tokens: int
) -> tuple[list[Prompt], list[str]]:
    """Applies the model's chat template once, for all rows.

    Returns:
        The prompts, and the ids of questions left out because prompt and `max_tokens` together
        are longer than the model's context.

    Raises:
        ConfigurationError: the folder has no usable tokenizer, or it has no chat template.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        config = AutoConfig.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as failure:
        raise ConfigurationError(f"cannot load the tokenizer of {model}: {failure}") from failure
    if not tokenizer.chat_template:
        raise ConfigurationError(f"the model {model} has no chat template")
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    prompts, left_out = [], []
    for question in questions:
        ids: Any = tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        if context is not None and len(ids) + max_tokens > context:
            left_out.append(question.question_id)
        else:
            prompts.append(Prompt(question.question_id, question.task, tuple(ids)))
    if not prompts:
        raise ConfigurationError("no question fits into the model's context")
    return prompts, left_out
