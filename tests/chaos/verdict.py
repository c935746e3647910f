"""The judge: is what a client ended with exactly the answer of an undisturbed run?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any

from tests.chaos.answers import Answer, Choice, Heard, Truth

_TOLERANCE = 1e-4


class Verdict(StrEnum):
    """WRONG: other tokens. LOST: some, or all, are missing. DOUBLED: some came twice. BROKEN: the
    answer is right, and the server broke its word on the way."""

    RIGHT = "right"
    WRONG = "wrong"
    LOST = "lost"
    DOUBLED = "doubled"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    detail: str = ""


_RIGHT = Finding(Verdict.RIGHT)


def judge(answer: Answer, truth: Truth) -> Finding:
    """The worst that can be said of an answer."""
    for partial in answer.partials:
        for index, heard in partial.items():
            if strays := _strays(heard, truth, index):
                return Finding(Verdict.WRONG, f"before it began again, {strays}")
    if answer.failure:
        return Finding(Verdict.LOST, answer.failure)
    if not answer.done:
        return Finding(Verdict.LOST, "the answer has no end")
    if sorted(answer.choices) != list(range(len(truth.choices))):
        return Finding(Verdict.LOST, f"continuations {sorted(answer.choices)} have come")
    for index, choice in enumerate(truth.choices):
        found = _judge_one(answer.choices[index], choice)
        if found.verdict is not Verdict.RIGHT:
            return Finding(found.verdict, f"continuation {index}: {found.detail}")
    counted = (answer.prompt_tokens, answer.completion_tokens)
    if counted != (truth.prompt_tokens, truth.completion_tokens):
        expected = (truth.prompt_tokens, truth.completion_tokens)
        return Finding(Verdict.WRONG, f"usage says {counted}, not {expected}")
    if answer.complaints:
        return Finding(Verdict.BROKEN, "; ".join(answer.complaints))
    return _RIGHT


def _judge_one(heard: Heard, choice: Choice) -> Finding:
    for what, come, right in (
        ("token ids", heard.token_ids, choice.token_ids),
        ("tokens", heard.token_texts, choice.token_texts),
    ):
        # Doors that tell no tokens leave this empty.
        if come and (found := compare(what, come, right)).verdict is not Verdict.RIGHT:
            return found
    if (found := compare("text", heard.text, choice.text)).verdict is not Verdict.RIGHT:
        return found
    if heard.finish_reason != choice.finish_reason:
        reasons = f"{heard.finish_reason!r}, not {choice.finish_reason!r}"
        return Finding(Verdict.WRONG, f"finish reason {reasons}")
    pairs = zip_longest(heard.logprobs, choice.logprobs, fillvalue=math.inf)
    for place, (come_at, right_at) in enumerate(pairs):
        if not abs(come_at - right_at) <= _TOLERANCE:
            return Finding(Verdict.WRONG, f"log probability {place}: {come_at}, not {right_at}")
    return _RIGHT


def compare(what: str, come: Sequence[Any], right: Sequence[Any]) -> Finding:
    """RIGHT where both are the same; LOST where only a stretch of the right one is missing, DOUBLED
    where it has a stretch too many, else WRONG."""
    come, right = (come, right) if isinstance(come, str) else (tuple(come), tuple(right))
    if come == right:
        return _RIGHT
    shorter = min(len(come), len(right))
    front = next((i for i in range(shorter) if come[i] != right[i]), shorter)
    back = next((i for i in range(shorter) if come[-1 - i] != right[-1 - i]), shorter)
    where = f"{what}: {len(come)} for {len(right)}, from {front} on {come[front : front + 12]!r}"
    where += f" instead of {right[front : front + 12]!r}"
    if front + back >= shorter and len(come) != len(right):
        return Finding(Verdict.LOST if len(come) < len(right) else Verdict.DOUBLED, where)
    return Finding(Verdict.WRONG, where)


def _strays(heard: Heard, truth: Truth, index: int) -> str:
    """Where a part of an answer is no beginning of the right one; empty where it is."""
    if index >= len(truth.choices):
        return f"continuation {index} has come"
    choice = truth.choices[index]
    if tuple(heard.token_ids) != choice.token_ids[: len(heard.token_ids)]:
        return f"continuation {index} had other tokens"
    return "" if choice.text.startswith(heard.text) else f"continuation {index} had another text"


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a session as its client knows it: what was said, and what was answered."""

    said: str
    answered: str


def judge_session(
    stored: Sequence[Turn] | None, acknowledged: Sequence[Turn], pending: Turn | None
) -> Finding:
    """Whether a session holds what was acknowledged, and nothing else.

    Args:
        stored: its turns; None where there is no such session.
        pending: the turn that was under way when its client last heard of it: it may be there.
    """
    if stored is None:
        if not acknowledged:
            return _RIGHT
        return Finding(Verdict.LOST, f"the session and its {len(acknowledged)} turns are gone")
    allowed = [list(acknowledged)]
    if pending is not None:
        allowed.append([*acknowledged, pending])
    if list(stored) in allowed:
        return _RIGHT
    if len(stored) < len(acknowledged):
        return Finding(Verdict.LOST, f"{len(stored)} of {len(acknowledged)} turns are stored")
    if len(stored) > len(allowed[-1]):
        return Finding(Verdict.DOUBLED, f"{len(stored)} turns for {len(allowed[-1])}")
    return Finding(Verdict.WRONG, "a turn that is stored is not the one that was acknowledged")


def tally(findings: Mapping[str, Finding]) -> dict[str, int]:
    """How many there are of each verdict."""
    counts = dict.fromkeys((str(each) for each in Verdict), 0)
    for finding in findings.values():
        counts[finding.verdict] += 1
    return counts
