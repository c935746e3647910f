"""Which rows the next step runs: first come, first served, within a budget of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slipstream.engine.batch import Segment
from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.generation import Generation

# Takes decoding sequences, most rows of the step and most drafts of a sequence; gives the drafts of
# each.
Share = Callable[[Sequence[Generation], int, int], Sequence[tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step.

    Attributes:
        prefill_chunk: most prompt rows of one sequence in one step.
        decode_rows: most rows for decoding and verification; drafts share what plain rows leave.
        max_drafts: most drafts of one sequence.
        strict: canonical shapes only: prompts alone and in chunks whose borders depend on
            position alone, decoding in blocks small enough to round alike.
    """

    prefill_chunk: int = 256
    decode_rows: int = MAX_STRICT_ROWS
    max_drafts: int = 16
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """Rows of one generation in the next step; `drafts` are the last of its tokens."""

    generation: Generation
    segment: Segment
    drafts: tuple[int, ...]

    @property
    def decodes(self) -> bool:
        """Whether it is one committed token and drafts, no piece of a prompt."""
        return len(self.segment.tokens) == 1 + len(self.drafts)


def _prefill(generation: Generation, limits: Limits) -> Work:
    sequence = generation.sequence
    start = sequence.computed
    end = min(start - start % limits.prefill_chunk + limits.prefill_chunk, len(sequence))
    assert sequence.table is not None
    wanted = 1 if end == len(sequence) else 0
    segment = Segment(sequence.tokens[start:end], start, sequence.table, wanted)
    return Work(generation, segment, ())


def _decode(generation: Generation, drafts: tuple[int, ...]) -> Work:
    sequence = generation.sequence
    assert sequence.table is not None
    tokens = (*sequence.tokens[sequence.computed :], *drafts)
    segment = Segment(tokens, sequence.computed, sequence.table, len(drafts) + 1)
    return Work(generation, segment, drafts)


@dataclass(frozen=True, slots=True)
class Turn:
    """Who computes in the next step: sequences that decode, and at most one that has a prompt."""

    decoding: tuple[Generation, ...]
    prompt: Generation | None


def next_turn(running: Iterable[Generation], limits: Limits, prefill_next: bool) -> Turn:
    """Every decoding sequence and the oldest unfinished prompt. In strict mode the two never
    share a step: `prefill_next` says whose turn it is."""
    running = tuple(running)
    decoding = [g for g in running if g.sequence.todo == 1]
    prompt = next((g for g in running if g.sequence.todo > 1), None)
    if limits.strict and prompt and decoding:
        decoding, prompt = ([], prompt) if prefill_next else (decoding, None)
    if limits.strict:
        # More sequences than rows take turns, those that waited longest first.
        decoding = sorted(decoding, key=lambda g: g.last_step)[: limits.decode_rows]
    return Turn(tuple(decoding), prompt)


def plan_step(turn: Turn, limits: Limits, share: Share) -> list[Work]:
    """The work of the next step, decoding sequences first; empty where there is none.

    Args:
        share: says which drafts each decoding sequence gets.
    """
    drafts = share(turn.decoding, limits.decode_rows, limits.max_drafts) if turn.decoding else ()
    work = [_decode(g, each) for g, each in zip(turn.decoding, drafts, strict=True)]
    return work + ([_prefill(turn.prompt, limits)] if turn.prompt else [])
