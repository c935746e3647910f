"""Made-up chats whose lengths are spread like those that people share.

In ShareGPT most turns are short, a few carry a pasted page, conversations have a handful of turns,
and answers are longer than questions; both lengths are close to log-normal (vLLM, arXiv 2309.06180,
figure 11). Everything here follows from a seed.
"""

from __future__ import annotations

import random

from slipstream.bench.load.asks import Dialogue
from slipstream.bench.load.phrases import (
    FOLLOW_UPS,
    OPENINGS,
    PASTES,
    PLACES,
    SENTENCES,
    TOPICS,
    WHAT,
    WHO,
)

# Turns of a conversation and how often; 2.4 in the mean.
_TURNS, _TURN_WEIGHTS = (1, 2, 3, 4, 5), (25, 35, 22, 12, 6)
_PASTE_SHARE = 0.25
# Median and spread (of the logarithm) of a paste's words and an answer's tokens.
_PASTE_WORDS, _PASTE_SPREAD = 120, 0.8
_MOST_PASTE_WORDS = 600
_ANSWER_TOKENS, _ANSWER_SPREAD = 60, 0.6
_LEAST_ANSWER = 8
_SAMPLED_SHARE = 0.5


def chats(count: int, seed: int, most_tokens: int = 128) -> list[Dialogue]:
    """So many conversations; the same seed gives the same ones, however many are asked for.

    Args:
        most_tokens: of one answer.
    """
    return [_chat(index, random.Random(f"{seed}/{index}"), most_tokens) for index in range(count)]


def passage(words: int, draw: random.Random) -> str:
    """Prose of at least so many words."""
    parts: list[str] = []
    length = 0
    while length < words:
        sentence = draw.choice(SENTENCES).format(
            who=draw.choice(WHO),
            what=draw.choice(WHAT),
            place=draw.choice(PLACES),
            number=draw.randint(2, 90),
            year=draw.randint(1890, 1999),
        )
        parts.append(sentence[0].upper() + sentence[1:])
        length += len(sentence.split())
    return " ".join(parts)


def _chat(index: int, draw: random.Random, most_tokens: int) -> Dialogue:
    turns, lengths = [], []
    for turn in range(draw.choices(_TURNS, _TURN_WEIGHTS)[0]):
        topic = draw.choice(TOPICS)
        if draw.random() < _PASTE_SHARE:
            words = min(_MOST_PASTE_WORDS, _log_normal(draw, _PASTE_WORDS, _PASTE_SPREAD))
            text = draw.choice(PASTES).format(topic=topic, passage=passage(words, draw))
        else:
            text = draw.choice(FOLLOW_UPS if turn else OPENINGS).format(topic=topic)
        turns.append(text)
        answer = _log_normal(draw, _ANSWER_TOKENS, _ANSWER_SPREAD)
        lengths.append(max(_LEAST_ANSWER, min(most_tokens, answer)))
    temperature = 0.8 if draw.random() < _SAMPLED_SHARE else 0.0
    seed = draw.randrange(2**31)
    return Dialogue(f"chat-{index}", "chat", tuple(turns), tuple(lengths), temperature, seed)


def _log_normal(draw: random.Random, median: int, spread: float) -> int:
    return max(1, round(median * draw.lognormvariate(0.0, spread)))
