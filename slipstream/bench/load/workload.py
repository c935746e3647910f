"""The dialogues of a load: tasks of a question file and made-up chats, mixed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from slipstream.bench.load.asks import Dialogue
from slipstream.bench.load.chats import chats, passage
from slipstream.bench.questions import DEFAULT_QUESTIONS, choose, encode, load_questions
from slipstream.bench.records import Question
from slipstream.core.errors import ConfigurationError

_SAMPLED_EVERY = 3
_TEMPERATURE = 0.8
# How exactly the length of a made-up prompt is met.
_WORD_STEP = 25


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


def dialogues_of_length(
    settings: WorkloadSettings, count: int, tokens: int | None = None
) -> list[Dialogue]:
    """So many greedy dialogues of one turn whose answers have all of their tokens.

    Questions first, then openings of chats, where there are fewer.

    Args:
        tokens: of each answer; None for the settings' max_tokens.

    Raises:
        ConfigurationError: the question file cannot be used.
    """
    length = settings.max_tokens if tokens is None else tokens
    questions = choose(load_questions(settings.questions), count)
    texts = [(f"question-{each.question_id}", each.task, each.text) for each in questions]
    texts += [(each.name, each.kind, each.turns[0]) for each in chats(count, settings.seed)]
    return [
        Dialogue(name, kind, (text,), (length,), ignore_eos=True)
        for name, kind, text in texts[:count]
    ]


def long_dialogues(
    model: Path, tokens: int, count: int, answers: tuple[int, ...]
) -> list[Dialogue]:
    """Greedy chats whose first prompt, template included, has `tokens` tokens or a few more.

    Args:
        model: a model folder, whose tokenizer counts.
        answers: tokens of the answer of each turn, all of them.

    Raises:
        ConfigurationError: the tokenizer cannot be used, or so long a prompt does not fit.
    """
    made = []
    for index in range(count):
        text = _of_length(model, tokens, sum(answers), random.Random(f"long/{tokens}/{index}"))
        turns = (text, *("And what follows from that?" for _ in answers[1:]))
        made.append(Dialogue(f"long-{index}", "chat", turns, answers, ignore_eos=True))
    return made


def _of_length(model: Path, tokens: int, room: int, draw: random.Random) -> str:
    """The shortest beginning of a long text, by words, that has so many tokens."""
    words = passage(tokens, draw).split()
    lengths = range(_WORD_STEP, len(words) + _WORD_STEP, _WORD_STEP)
    beginnings = [" ".join(words[:length]) for length in lengths]
    questions = [Question(str(i), "chat", text) for i, text in enumerate(beginnings)]
    for prompt in encode(questions, model, room)[0]:
        if len(prompt.token_ids) >= tokens:
            return beginnings[int(prompt.question_id)]
    raise ConfigurationError(f"a prompt of {tokens} tokens does not fit into the model's context")


def digest(dialogues: Sequence[Dialogue]) -> str:
    """Names the dialogues by their content."""
    content = json.dumps([asdict(each) for each in dialogues]).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _interleave(one: list[Dialogue], other: list[Dialogue]) -> list[Dialogue]:
    """Both, spread evenly over each other."""
    places = [((i + 0.5) / len(one), 0, d) for i, d in enumerate(one)]
    places += [((i + 0.5) / len(other), 1, d) for i, d in enumerate(other)]
    return [d for _, _, d in sorted(places, key=lambda entry: entry[:2])]
