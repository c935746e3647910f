"""What became of a request: its verdict against the known answer, and its times."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum

from slipstream.bench.load.reading import Reading


class Verdict(StrEnum):
    """RIGHT equals the known answer; COMPLETE ended properly where none is known. CANCELLED was
    left by its client, and what had come by then was right. REFUSED was turned away for overload.
    The others are faults."""

    RIGHT = "right"
    COMPLETE = "complete"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    WRONG = "wrong"
    TRUNCATED = "truncated"
    MISSING = "missing"


FAULTS = frozenset({Verdict.WRONG, Verdict.TRUNCATED, Verdict.MISSING})
ANSWERED = frozenset({Verdict.RIGHT, Verdict.COMPLETE})


@dataclass(frozen=True, slots=True)
class Known:
    """The answer that a request must get: that of the stack alone, in exactness strict."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request, done with. Times in seconds.

    Attributes:
        due: since the start of the load; `ttft`, `e2e` count from here.
        late: how long after that it was sent, for want of time in the client.
        ttft: None where no token came.
        gaps: between the chunks of the answer.
        tokens: that the server counted.
        detail: what was wrong, empty where nothing was.
    """

    name: str
    kind: str
    verdict: Verdict
    due: float
    e2e: float
    ttft: float | None
    gaps: tuple[float, ...]
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    detail: str = ""
    retry_after: float | None = None
    late: float = 0.0

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first, (E2E - TTFT) / (n - 1); None below two tokens."""
        if self.ttft is None or self.tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.tokens - 1)


def judge(reading: Reading, known: Known | None) -> tuple[Verdict, str]:
    """The verdict on an answer, and what was wrong with it."""
    if reading.refused:
        return Verdict.REFUSED, reading.failure
    if known is not None and (where := _strays(reading, known)):
        return Verdict.WRONG, where
    if reading.failure:
        return Verdict.MISSING, reading.failure
    if reading.left:
        return Verdict.CANCELLED, ""
    if not reading.finish_reason or reading.completion_tokens is None:
        return Verdict.TRUNCATED, f"ended without a finish reason or usage: {reading.text[-80:]!r}"
    if known is None:
        # Nothing to compare with; an answer of no tokens is none all the same.
        return (Verdict.COMPLETE, "") if reading.completion_tokens else (Verdict.MISSING, "empty")
    return _compare(reading, known)


def _strays(reading: Reading, known: Known) -> str:
    """Where what has come is no beginning of the known answer; empty where it is."""
    ids = tuple(reading.token_ids)
    if ids != known.token_ids[: len(ids)]:
        at = next(
            (i for i, (a, b) in enumerate(zip(ids, known.token_ids, strict=False)) if a != b),
            len(known.token_ids),
        )
        return f"token {at} of {len(known.token_ids)} differs: {ids[at : at + 4]}"
    if not known.text.startswith(reading.text):
        return f"text differs: {reading.text[-80:]!r} is not in {known.text[-80:]!r}"
    return ""


def _compare(reading: Reading, known: Known) -> tuple[Verdict, str]:
    """A finished answer that is a beginning of the known one: is it all of it?"""
    missing = len(known.text) - len(reading.text)
    if missing or reading.completion_tokens != len(known.token_ids):
        counted = f"{reading.completion_tokens} of {len(known.token_ids)} tokens"
        return Verdict.TRUNCATED, f"{counted}, {missing} characters are missing"
    if reading.token_ids and len(reading.token_ids) != len(known.token_ids):
        return Verdict.TRUNCATED, f"{len(reading.token_ids)} of {len(known.token_ids)} token ids"
    if reading.finish_reason != known.finish_reason:
        return Verdict.WRONG, f"finish reason {reading.finish_reason}, not {known.finish_reason}"
    if reading.prompt_tokens != known.prompt_tokens:
        return Verdict.WRONG, f"{reading.prompt_tokens} prompt tokens, not {known.prompt_tokens}"
    return Verdict.RIGHT, ""


def outcome(
    name: str, kind: str, reading: Reading, known: Known | None, start: float = 0.0
) -> Outcome:
    """Closes the books on a request; `start` is when the load began, on the reading's clock."""
    verdict, detail = judge(reading, known)
    arrivals = reading.arrivals
    return Outcome(
        name=name,
        kind=kind,
        verdict=verdict,
        due=reading.due - start,
        e2e=reading.end - reading.due,
        ttft=arrivals[0] - reading.due if arrivals else None,
        gaps=tuple(b - a for a, b in itertools.pairwise(arrivals)),
        tokens=reading.completion_tokens or len(reading.token_ids),
        prompt_tokens=reading.prompt_tokens or 0,
        cached_tokens=reading.cached_tokens,
        detail=detail,
        retry_after=reading.retry_after,
        late=reading.sent - reading.due,
    )
