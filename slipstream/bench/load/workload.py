"""The dialogues of a load: tasks of a question file and made-up chats, mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slipstream.bench.load.asks import Dialogue
from slipstream.bench.load.chats import chats
from slipstream.bench.questions import DEFAULT_QUESTIONS, choose, load_questions
from slipstream.core.errors import ConfigurationError

_SAMPLED_EVERY = 3
_TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class WorkloadSettings:
    """Which dialogues.

    Attributes:
        questions: a file in Spec-Bench's format; its first turns are asked.
        limit: most questions, None for all.
        chats: how many made-up conversations.
        max_tokens: most of one answer.
        greedy: nothing is sampled.
        seed: of everything that is made up.

    Raises:
        ConfigurationError: a number out of its range.
    """

    questions: Path = DEFAULT_QUESTIONS
    limit: int | None = None
    chats: int = 12
    max_tokens: int = 96
    greedy: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.chats < 0 or (self.limit is not None and self.limit < 0):
            raise ConfigurationError("max-tokens must be at least 1, limit and chats at least 0")


def workload(settings: WorkloadSettings) -> list[Dialogue]:
    """The dialogues: questions and chats in turn. A third of the questions is sampled, the rest
    is greedy.

    Raises:
        ConfigurationError: the question file cannot be used, or there is nothing to ask.
    """
    asked = []
    if settings.limit != 0:
        questions = choose(load_questions(settings.questions), settings.limit)
        for place, question in enumerate(questions):
            sampled = place % _SAMPLED_EVERY == _SAMPLED_EVERY - 1 and not settings.greedy
            asked.append(
                Dialogue(
                    f"question-{question.question_id}",
                    question.task,
                    (question.text,),
                    (settings.max_tokens,),
                    _TEMPERATURE if sampled else 0.0,
                    settings.seed + place,
                )
            )
    made_up = chats(settings.chats, settings.seed, settings.max_tokens)
    if settings.greedy:
        made_up = [Dialogue(d.name, d.kind, d.turns, d.max_tokens) for d in made_up]
    mixed = _interleave(asked, made_up)
    if not mixed:
        raise ConfigurationError("there is nothing to ask: no question and no chat")
    return mixed


def digest(dialogues: Sequence[Dialogue]) -> str:
    """Names the dialogues by their content."""
    content = json.dumps([asdict(each) for each in dialogues]).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _interleave(one: list[Dialogue], other: list[Dialogue]) -> list[Dialogue]:
    """Both, spread evenly over each other."""
    places = [((i + 0.5) / len(one), 0, d) for i, d in enumerate(one)]
    places += [((i + 0.5) / len(other), 1, d) for i, d in enumerate(other)]
    return [d for _, _, d in sorted(places, key=lambda entry: entry[:2])]
