"""The mix of requests: every feature that has to carry over from one process to another."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace

from tests.chaos.asks import WAYS, Ask

_WORDS = (
    "the quick brown fox jumps over a lazy dog while some drafter runs ahead and the verifier"
    " decides every token of it 0 1 2 3 4 5 6 7 8 9 + - * / ( ) naïve café 日本 😀"
)
_TURNS = 3
# Of all generations, those that are turns of sessions.
_SESSION_SHARE = 0.25
# Each question is asked by so many clients, in ways of their own.
_ASKED = 4
# Kinds of requests, by the feature that they try.
_KINDS = 8


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation: what the user says in each turn, and how it is to be answered.

    Attributes:
        turns: each with a prompt of one message, the user's new one.
    """

    name: str
    turns: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What one client does: a question asked in one way, or a dialogue.

    Attributes:
        way: "stream", "whole", "background" or "grpc"; of a dialogue, that of its turns.
    """

    name: str
    way: str
    work: Ask | Dialogue

    @property
    def generations(self) -> int:
        return 1 if isinstance(self.work, Ask) else len(self.work.turns)


@dataclass(frozen=True, slots=True)
class Workload:
    asks: tuple[Ask, ...]
    dialogues: tuple[Dialogue, ...]
    jobs: tuple[Job, ...]

    @property
    def generations(self) -> int:
        return sum(job.generations for job in self.jobs)


def workload(
    seed: int,
    generations: int,
    *,
    tokens: tuple[int, int] = (100, 400),
    ways: Collection[str] = WAYS,
) -> Workload:
    """At least so many generations, in random order.

    Args:
        tokens: least and most of one answer.
        ways: those that may be used; "session" stands for dialogues.
    """
    draw = random.Random(f"workload/{seed}")
    single = [way for way in WAYS if way in ways and way != "session"]
    in_sessions = generations if not single else round(_SESSION_SHARE * generations)
    if "session" not in ways:
        in_sessions = 0
    dialogues = tuple(
        _dialogue(f"dialogue-{number}", draw, tokens) for number in range(-(-in_sessions // _TURNS))
    )
    left = generations - _TURNS * len(dialogues)
    asks = tuple(_ask(number, draw, tokens) for number in range(-(-max(0, left) // _ASKED)))
    turn_ways = [way for way in single if way != "background"] or ["stream", "whole", "grpc"]
    jobs = [Job(d.name, turn_ways[i % len(turn_ways)], d) for i, d in enumerate(dialogues)]
    for number in range(max(0, left)):
        ask = asks[number % len(asks)]
        # Every ask goes through all ways in turn, each at a place of its own.
        way = single[(number % len(asks) + number // len(asks)) % len(single)]
        jobs.append(Job(f"{ask.name}/{number // len(asks)}", way, ask))
    draw.shuffle(jobs)
    return Workload(asks, dialogues, tuple(jobs))


def _text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(_WORDS.split(), k=words))


def _ask(number: int, draw: random.Random, tokens: tuple[int, int]) -> Ask:
    text = _text(draw, draw.randint(4, 24))
    chat = number % 3 != 2
    ask = Ask(
        name=f"ask-{number}",
        prompt=(("user", text),) if chat else text,
        max_tokens=draw.randint(*tokens),
        seed=draw.randrange(2**32),
        # A third is greedy, of every kind.
        temperature=1.0 if number // _KINDS % 3 else 0.0,
    )
    match number % _KINDS:
        case 1:
            return replace(ask, n=2)
        case 2:
            return replace(ask, stop_at=draw.uniform(0.4, 0.9))
        case 3:
            return replace(ask, logprobs=3 * (number // _KINDS % 2))
        case 4:
            return replace(ask, presence_penalty=0.7, frequency_penalty=0.4)
        case 5:
            return replace(ask, top_p=0.8, repetition_penalty=1.2)
        case 6:
            return replace(ask, n=2, stop_at=draw.uniform(0.4, 0.9), repetition_penalty=1.1)
        case 7:
            return replace(ask, ignore_eos=False)
        case _:
            return ask


def _dialogue(name: str, draw: random.Random, tokens: tuple[int, int]) -> Dialogue:
    """Turns of half the length: each has all before it as its prompt."""
    temperature = draw.choice((0.0, 1.0, 1.0))
    return Dialogue(
        name,
        tuple(
            Ask(
                name=f"{name}/{turn}",
                prompt=(("user", _text(draw, draw.randint(3, 12))),),
                max_tokens=draw.randint(tokens[0] // 2, tokens[1] // 2),
                seed=draw.randrange(2**32),
                temperature=temperature,
            )
            for turn in range(_TURNS)
        ),
    )
