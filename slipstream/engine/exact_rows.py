"""How many rows a step may have before what it computes depends on how many there are.

A kernel may take another path from some number of rows on, or of keys, and round differently there.
So one text is computed over and over, in few rows and in many, alone and beside others, and beyond
one tile of keys of an attention kernel: up to which number of rows its keys, values and logits keep
every bit is measured, not assumed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch

from slipstream.engine.batch import Segment
from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable
from slipstream.engine.placement import thread_counts
from slipstream.engine.runner import ModelRunner

# From the first on, prompts and decoding may share a step.
SIZES = (64, 128, 256)
# Torch's attention takes 512 keys at a time on a CPU.
_LENGTH = 640
# Positions that are computed as one row, and beside how many others. From behind: the first row of
# a block clears what is behind it.
_SINGLES = (
    *((600, 0), (513, 7), (511, 3), (385, 0), (300, 7), (255, 3), (193, 0), (191, 7)),
    *((100, 3), (50, 0), (16, 7), (15, 3), (1, 0), (0, 7)),
)

Piece = tuple[int, int]


class _Text:
    """A random text, to be computed again and again.

    Args:
        rows: most rows of a step; logits are asked for the last so many positions.
    """

    def __init__(self, runner: ModelRunner, rows: int) -> None:
        generator = torch.Generator().manual_seed(1)
        vocab, room = runner.loaded.config.vocab_size, runner.pool.num_free * BLOCK_TOKENS
        self.length = min(_LENGTH, runner.loaded.context_length, room - rows)
        self.rows, self._runner = rows, runner
        self._mine, self._others = (
            torch.randint(0, vocab, (max(1, count),), generator=generator).tolist()
            for count in (self.length, rows)
        )
        self._tables: list[BlockTable] = []

    def __enter__(self) -> Self:
        for tokens in (self._mine, self._others):
            table = self._runner.pool.allocate(len(tokens))
            assert table is not None, "the length is what there is room for"
            self._tables.append(table)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._tables:
            self._runner.pool.release(self._tables.pop())

    def compute(self, pieces: Iterable[Piece], start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the positions from `start` on, and the logits of the last of them.

        Args:
            pieces: rows of one step each, and how many rows of another text are before them.
        """
        at, logits = start, []
        for count, others in pieces:
            wanted = max(0, at + count - max(at, self.length - self.rows))
            segment = Segment(self._mine[at : at + count], at, self._tables[0], wanted)
            beside = Segment(self._others[:others], 0, self._tables[1], min(others, 1))
            made = self._runner.forward([beside, segment] if others else [segment])
            logits.append(made[min(others, 1) :].clone())
            at += count
        return self._runner.pool.copy_rows(self._tables[0], start, at), torch.cat(logits)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a text gives when it is computed in few rows at a time."""

    text: _Text
    keys: torch.Tensor
    logits: torch.Tensor

    def same(self, pieces: Iterable[Piece], start: int = 0) -> bool:
        """Whether it is the same, to the last bit, when computed in these pieces."""
        keys, logits = self.text.compute(pieces, start)
        skipped = max(0, start - self.text.length + self.text.rows)
        return torch.equal(keys, self.keys[:, :, start : start + keys.shape[2]]) and torch.equal(
            logits, self.logits[skipped : skipped + len(logits)]
        )

    def same_at_the_end_on_fewer_threads(self, rows: int) -> bool:
        """A placement may move the process to fewer cores while it serves."""
        threads = torch.get_num_threads()
        try:
            for count in thread_counts(threads)[:-1]:
                torch.set_num_threads(count)
                if not self.same([(rows, 0)], self.text.length - rows):
                    return False
        finally:
            torch.set_num_threads(threads)
        return True


def max_exact_rows(runner: ModelRunner, few: int, sizes: Sequence[int] = SIZES) -> int:
    """The most rows of a step up to which results have the same bits.

    That is: keys, values and logits of a position, as a row that decodes or within any piece of a
    prompt, whatever other rows there are. With the shapes that `runner` has now.

    Args:
        few: so many rows are to be exact in any case; a divisor of all `sizes`, which rise.

    Returns:
        One of `sizes`; `few` where none of them is exact or the pool has no room to find out; 0
        where not even `few` rows are exact at any length of the context.
    """
    for most in (*reversed(sizes), few):
        text = _Text(runner, most)
        if text.length >= most + few:
            with text:
                return _largest(text, few, [rows for rows in sizes if rows <= most])
    return few


def _largest(text: _Text, few: int, sizes: Sequence[int]) -> int:
    known = _Known(text, *text.compute(_run(text.length, few)))
    # A product may round differently for 9 rows only: with two threads float32 does.
    if not all(known.same([(count, 0)], text.length - count) for count in range(2, few)):
        return 0
    singles = [(at, others) for at, others in _SINGLES if at < text.length]
    if not all(known.same([(1, others)], at) for at, others in singles):
        return 0
    for rows in reversed(sizes):
        # A few rows among as many as there may be, and pieces of sizes in between.
        half = rows // 2
        pieces = [(8, rows - 8), (half - 24, 0), (11, 29), (half + 5, 0)]
        # The last piece is a whole one: it has the most keys.
        rest = reversed(_run(text.length - rows, rows))
        if (
            known.same([*pieces, *rest])
            and known.same_at_the_end_on_fewer_threads(rows)
            # Odd numbers are the first to be rounded differently. At the end, where logits are
            # looked at, too.
            and all(known.same([(n, 0)], text.length - n) for n in (rows - 1, rows - 3, rows - 5))
        ):
            return rows
    return few


def _run(length: int, rows: int) -> list[Piece]:
    """`length` positions, so many rows at a time."""
    return [(min(rows, length - at), 0) for at in range(0, length, rows)]
