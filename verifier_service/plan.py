"""What the next step runs: everything that decodes, and pieces of prompts beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from slipstream.engine.batch import Segment
from slipstream.engine.exactness import MAX_STRICT_ROWS
from verifier_service.generation import Generation

# Takes decoding sequences, most rows of the step and most drafts of a sequence; gives the drafts of
# each.
Share = Callable[[Sequence[Generation], int, int], Sequence[tuple[int, ...]]]
Order = Callable[[Generation], tuple[float, ...]]
# Takes the sequences that decode in a step, their rows, and those that are left in it; gives those
# for prompts.
Budget = Callable[[int, int, int], int]
# However slow a row is, prompts get so many rows of a step.
LEAST_PROMPT_ROWS = 16
# Strict steps of fewer rows are too small to carry prompts.
_LEAST_MIXED_ROWS = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step.

    Attributes:
        step_rows: most rows of a step.
        prefill_chunk: length of canonical chunks.
        decode_rows: most rows for decoding and verification; drafts share what plain rows leave.
        max_drafts: most drafts of one sequence.
        strict: only shapes under which a row's result depends on no other row.
        mixed_rows: up to so many rows of a step, every row's result is bitwise the same in any
            company, as measured when the model was loaded. Looked at in strict mode only.
    """

    step_rows: int = 512
    prefill_chunk: int = 256
    decode_rows: int = MAX_STRICT_ROWS
    max_drafts: int = 16
    strict: bool = False
    mixed_rows: int = 0

    @classmethod
    def of(cls, *, strict: bool, exact_rows: int, step_rows: int, prefill_chunk: int) -> Limits:
        """What follows from the settings and from the most rows that agree in strict mode."""
        limits = cls(step_rows, prefill_chunk, strict=strict, mixed_rows=exact_rows)
        return limits if limits.canonical else replace(limits, decode_rows=limits.most_rows)

    @property
    def canonical(self) -> bool:
        """Strict where only small steps agree bit for bit: prompts alone and in chunks whose
        borders depend on position alone, what follows them in small blocks."""
        return self.strict and self.mixed_rows < _LEAST_MIXED_ROWS

    @property
    def most_rows(self) -> int:
        """Of a step that may carry prompts beside what decodes."""
        return min(self.step_rows, self.mixed_rows) if self.strict else self.step_rows

    def most_decoding(self, beside_prompts: bool) -> int:
        """Sequences that may decode in one step, or rows that they and their drafts may have."""
        if self.canonical:
            return self.decode_rows
        return max(1, self.most_rows - LEAST_PROMPT_ROWS * beside_prompts)


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

    @property
    def rows(self) -> int:
        return len(self.segment.tokens)

    def __str__(self) -> str:
        number, segment = self.generation.number, self.segment
        if self.decodes:
            return f"#{number}" + (f"+{len(self.drafts)}" if self.drafts else "")
        return f"#{number}[{segment.position}:{segment.kv_length}]"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, decoding sequences first; `str` of it is one line.

    Attributes:
        most_rows: that it could have had.
    """

    work: tuple[Work, ...]
    most_rows: int

    @property
    def rows(self) -> int:
        return sum(item.rows for item in self.work)

    @property
    def decode_rows(self) -> int:
        return sum(item.rows for item in self.work if item.decodes)

    @property
    def prompt_rows(self) -> int:
        return self.rows - self.decode_rows

    @property
    def segments(self) -> list[Segment]:
        return [item.segment for item in self.work]

    def __str__(self) -> str:
        """As in `37 of 256 rows, decoding #1+3 #4, prompts #7[64:96]`: sequence 1 with three
        drafts, 4 without, and positions 64 to 95 of 7."""
        decoding = " ".join(str(item) for item in self.work if item.decodes)
        prompts = " ".join(str(item) for item in self.work if not item.decodes)
        return (
            f"{self.rows} of {self.most_rows} rows, "
            f"decoding {decoding or 'none'}, prompts {prompts or 'none'}"
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """Who computes in the next step: sequences that decode, and unfinished prompts in order."""

    decoding: tuple[Generation, ...]
    prompts: tuple[Generation, ...] = ()


def next_turn(
    running: Sequence[Generation], limits: Limits, prefill_next: bool, order: Order
) -> Turn:
    """Every decoding sequence and every unfinished prompt.

    Where there are canonical chunks, one prompt alone or decoding sequences alone: `prefill_next`
    says whose turn it is. More sequences than rows take turns, those that waited longest first.

    Args:
        order: of two prompts, the one with the lower value goes first.
    """
    decoding = [g for g in running if g.sequence.todo == 1]
    prompts = sorted((g for g in running if g.sequence.todo > 1), key=order)
    if limits.canonical:
        prompts = prompts[:1]
        if prompts and decoding:
            decoding, prompts = ([], prompts) if prefill_next else (decoding, [])
    decoding.sort(key=lambda g: g.turn)
    return Turn(tuple(decoding[: limits.most_decoding(bool(prompts))]), tuple(prompts))


def plan_step(turn: Turn, limits: Limits, share: Share, budget: Budget) -> StepPlan:
    """The work of the next step; empty where there is none.

    Args:
        share: says which drafts each decoding sequence gets.
        budget: says how many rows prompts may use.
    """
    most = min(limits.decode_rows, limits.most_decoding(bool(turn.prompts)))
    drafts = share(turn.decoding, most, limits.max_drafts) if turn.decoding else ()
    work = [_decode(g, each) for g, each in zip(turn.decoding, drafts, strict=True)]
    if limits.canonical:
        chunks = [_chunk(g, limits) for g in turn.prompts]
        return StepPlan((*work, *chunks), limits.prefill_chunk if chunks else limits.decode_rows)
    rows = sum(item.rows for item in work)
    left = max(0, limits.most_rows - rows)
    left = budget(len(work), rows, left) if turn.prompts else 0
    for generation in turn.prompts:
        if left <= 0:
            break
        work.append(_piece(generation, generation.sequence.computed + left))
        left -= work[-1].rows
    return StepPlan(tuple(work), limits.most_rows)


def _piece(generation: Generation, end: int) -> Work:
    """What is there to compute before position `end`; the last piece wants the next token."""
    sequence = generation.sequence
    start, end = sequence.computed, min(end, len(sequence))
    assert sequence.table is not None
    wanted = 1 if end == len(sequence) else 0
    return Work(generation, Segment(sequence.tokens[start:end], start, sequence.table, wanted), ())


def _chunk(generation: Generation, limits: Limits) -> Work:
    """As a piece, with a shape that depends on position alone: of a prompt up to the next border,
    and what follows it, computed again after a preemption, in blocks as small as it was first."""
    sequence = generation.sequence
    start, chunk = sequence.computed, limits.prefill_chunk
    if start < sequence.num_prompt:
        return _piece(generation, min(start - start % chunk + chunk, sequence.num_prompt))
    return _piece(generation, start + limits.decode_rows)


def _decode(generation: Generation, drafts: tuple[int, ...]) -> Work:
    sequence = generation.sequence
    assert sequence.table is not None
    tokens = (*sequence.tokens[sequence.computed :], *drafts)
    segment = Segment(tokens, sequence.computed, sequence.table, len(drafts) + 1)
    return Work(generation, segment, drafts)
