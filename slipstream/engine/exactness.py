"""Shapes that make results bitwise independent of what else is in a batch.

A product over 1 row and over 8 rows may round differently, and so may attention over different
numbers of queries. Which shapes agree depends on the machine, the build and the model, so it is
measured when a model is loaded: the smallest padding under which a position's logits come out
bit for bit the same, whatever the number of rows, their place, and the other sequences; and up to
how many rows that holds (`exact_rows`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from slipstream.core.errors import ConfigurationError
from slipstream.engine.batch import Segment
from slipstream.engine.exact_rows import max_exact_rows
from slipstream.engine.kv_pool import BlockTable, KvPool
from slipstream.engine.placement import thread_counts
from slipstream.engine.runner import ModelRunner

# Strict steps may have so many rows that decode or verify, wherever there is strict at all.
MAX_STRICT_ROWS = 32
_CONTEXT = 75
_TAIL = 12
# How the tail is cut: every width is seen once, at a place of its own.
_CUTS = ((12,), (5, 7), (8, 4), (2, 3, 6, 1))
# From so many rows on a step takes so long that what disturbs one is small beside it.
_MANY_ROWS = 64


@dataclass(frozen=True, slots=True)
class Shapes:
    """Padding of a batch, and what it is good for.

    Attributes:
        min_rows: fewest rows; query_multiple: that query rows of a sequence are padded to.
        max_rows: most rows of a step up to which results are exact; 0 where that is not known.
            From 64 on prompts may be cut anywhere, share steps with rows that decode, and begin
            with what another sequence computed in whatever company.
    """

    min_rows: int
    query_multiple: int
    max_rows: int = 0


_CANDIDATES = tuple(
    Shapes(rows, queries)
    for rows, queries in (
        *((1, 1), (4, 1), (4, 4), (8, 1), (8, 4), (8, 8)),
        *((16, 1), (16, 4), (16, 8), (32, 8), (32, 16), (32, 32)),
    )
)
_CHEAP = _CANDIDATES[:2]


class _Probe:
    """A short random sequence, run over and over in different company."""

    def __init__(self, runner: ModelRunner) -> None:
        generator = torch.Generator().manual_seed(0)
        vocab = runner.loaded.config.vocab_size
        length = _CONTEXT + MAX_STRICT_ROWS
        self._runner = runner
        self._ids = torch.randint(0, vocab, (3, length), generator=generator).tolist()
        self.tables: list[BlockTable] = []
        for ids in self._ids:
            table = runner.pool.allocate(length)
            if table is None:
                raise ConfigurationError("the KV pool is too small to probe for strict shapes")
            self.tables.append(table)
            runner.forward([Segment(ids[:_CONTEXT], 0, table, 1)])

    @staticmethod
    def blocks() -> int:
        """How much of the pool a probe takes."""
        return 3 * KvPool.blocks_for(_CONTEXT + MAX_STRICT_ROWS)

    def close(self) -> None:
        for table in self.tables:
            self._runner.pool.release(table)

    def _rows(self, which: int, start: int, count: int) -> Segment:
        at = _CONTEXT + start
        return Segment(self._ids[which][at : at + count], at, self.tables[which], count)

    def alone(self, widths: Sequence[int]) -> torch.Tensor:
        """Logits of the tail, [_TAIL, vocab], taken so many rows at a time."""
        runs, start = [], 0
        for width in widths:
            runs.append(self._runner.forward([self._rows(0, start, width)]).clone())
            start += width
        return torch.cat(runs)

    def in_company(self, width: int, *others: tuple[int, int]) -> torch.Tensor:
        """The same `width` rows at a time, with rows of other sequences on both sides, in turn."""
        runs = []
        for start, (before, after) in zip(range(0, _TAIL, width), cycle(others), strict=False):
            mine = self._rows(0, start, min(width, _TAIL - start))
            segments = [self._rows(1, 0, before), mine, self._rows(2, 0, after)]
            logits = self._runner.forward([s for s in segments if s.tokens])
            runs.append(logits[before : before + len(mine.tokens)].clone())
        return torch.cat(runs)

    def _agrees_on_fewer_threads(self, reference: torch.Tensor) -> bool:
        """A placement may move the process to fewer cores while it serves."""
        threads = torch.get_num_threads()
        try:
            for fewer in thread_counts(threads)[:-1]:
                torch.set_num_threads(fewer)
                if not torch.equal(self.alone((4, 4, 4)), reference):
                    return False
        finally:
            torch.set_num_threads(threads)
        return True

    def agrees(self, shapes: Shapes) -> bool:
        _use(self._runner, shapes)
        # What is to be refused mostly differs in the first row, after two steps of many.
        if not torch.equal(self.alone((1,)), self.alone((_TAIL,))[:1]):
            return False
        reference = self.alone((1,) * _TAIL)
        return (
            all(torch.equal(self.alone(widths), reference) for widths in _CUTS)
            and torch.equal(self.in_company(1, (1, 0), (0, 3)), reference)
            and all(
                torch.equal(self.in_company(width, others), reference)
                for width, others in ((4, (5, 4)), (12, (9, 11)), (3, (16, 4)))
            )
            and self._agrees_on_fewer_threads(reference)
        )


def strict_shapes(runner: ModelRunner, candidates: Sequence[Shapes] = _CANDIDATES) -> Shapes | None:
    """The first of the candidates that is bitwise exact here, set on `runner`; None if none is."""
    probe = _Probe(runner)
    try:
        for shapes in candidates:
            # At the start of a text first: it is quick, and refuses most that are to be refused.
            rows = max_exact_rows(runner, MAX_STRICT_ROWS) if probe.agrees(shapes) else 0
            if rows:
                return replace(shapes, max_rows=rows)
    finally:
        probe.close()
    return None


def step_seconds(runner: ModelRunner, rows: Sequence[int], runs: int = 3) -> dict[int, float]:
    """Time of a decoding or verification step of one sequence by its rows, the least of some runs.

    Of a shard, its part of it. Steps of many rows are run once.

    Row counts for which the pool has no room are left out; the first one is always there.
    """
    best: dict[int, float] = {}
    loaded = runner.loaded
    table = runner.pool.allocate(_CONTEXT + max(rows)) or runner.pool.allocate(rows[0])
    if table is None:
        raise ConfigurationError("the KV pool is too small for one step")
    try:
        start = min(_CONTEXT, table.capacity - rows[0])
        fitting = [count for count in rows if start + count <= table.capacity]
        for run in range(runs):
            for count in (n for n in fitting if not run or n < _MANY_ROWS):
                states = torch.zeros(count, loaded.config.hidden_size, dtype=loaded.dtype)
                started = time.perf_counter()
                runner.forward(
                    [Segment([1] * count, start, table, count)],
                    None if loaded.shard.first else states,
                )
                elapsed = time.perf_counter() - started
                best[count] = min(best.get(count, elapsed), elapsed)
    finally:
        runner.pool.release(table)
    return best


def _plain_step_seconds(runner: ModelRunner) -> dict[Shapes, float]:
    """Time of a plain decoding step with 1 and with 4 rows.

    Some kernels take longer over a vector than over a small matrix.
    """
    best: dict[Shapes, float] = {}
    for _ in range(8):
        for shapes in _CHEAP:
            _use(runner, shapes)
            elapsed = step_seconds(runner, (1,), runs=1)[1]
            best[shapes] = min(best.get(shapes, elapsed), elapsed)
    return best


def choose_shapes(runner: ModelRunner, exactness: str) -> tuple[str, Shapes]:
    """Settles exactness and shapes of a freshly loaded model; sets them on `runner`.

    No clock has a say in whether a model runs strict: the same machine must give the same tokens
    after every start.

    Args:
        exactness: fast, strict, or auto: strict where that takes no more padding than a step of
            four rows, which costs next to nothing, else fast.

    Returns:
        fast or strict, and the shapes.

    Raises:
        ConfigurationError: strict was asked for and is not to be had.
    """
    if exactness == "strict":
        strict = strict_shapes(runner)
        if strict is None:
            raise ConfigurationError(
                "exactness strict is not to be had here: no padding makes this model's results "
                "independent of the batch on this machine; use exactness fast"
            )
        return "strict", strict
    if exactness == "auto" and runner.pool.num_free >= _Probe.blocks():
        strict = strict_shapes(runner, _CHEAP)
        if strict is not None:
            return "strict", strict
    seconds = _plain_step_seconds(runner)
    fastest = min(seconds, key=lambda shapes: seconds[shapes])
    _use(runner, fastest)
    return "fast", fastest


def _use(runner: ModelRunner, shapes: Shapes) -> None:
    runner.min_rows = shapes.min_rows
    runner.query_multiple = shapes.query_multiple
