"""Which rows the next step runs: first come, first served, within a budget of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slipstream.engine.batch import Segment
from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.generation import Generation


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
    max_drafts: int = 8
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """Rows of one generation in the next step; `drafts` are the last of its tokens."""

    generation: Generation
    segment: Segment
    drafts: tuple[int, ...]


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


def plan_step(running: Iterable[Generation], limits: Limits, prefill_next: bool) -> list[Work]:
    """The work of the next step, oldest generation first; empty where there is none.

    A step carries every decoding sequence and one chunk of the oldest unfinished prompt. In
    strict mode the two never share a step: `prefill_next` says whose turn it is.
    """
    decoding = [g for g in running if g.sequence.todo == 1]
    prompts = [g for g in running if g.sequence.todo > 1]
    prompt = prompts[:1]
    if limits.strict and prompt and decoding:
        decoding, prompt = ([], prompt) if prefill_next else (decoding, [])
    if limits.strict:
        # More sequences than rows take turns, those that waited longest first.
        decoding = sorted(decoding, key=lambda g: g.last_step)[: limits.decode_rows]
    each = 0
    if decoding:
        each = min(limits.max_drafts, max(0, limits.decode_rows - len(decoding)) // len(decoding))
    work = [_decode(g, g.drafts(each)) for g in decoding]
    return work + [_prefill(g, limits) for g in prompt]
