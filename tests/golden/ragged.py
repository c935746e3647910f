"""Drives a runner as roughly as an engine would, and keeps the logits of every position."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from slipstream.engine.batch import Segment
from slipstream.engine.kv_pool import BLOCK_TOKENS, BlockTable
from slipstream.engine.runner import ModelRunner


def fragmented(runner: ModelRunner, holes: int) -> list[BlockTable]:
    """Takes the whole pool and gives single blocks back: what comes next is scattered.

    Returns what stays taken.
    """
    pool = runner.pool
    tables = [pool.allocate(BLOCK_TOKENS) for _ in range(pool.num_free)]
    kept = []
    for index, table in enumerate(tables):
        assert table is not None
        if index % 2 and index < 2 * holes:
            pool.release(table)
        else:
            kept.append(table)
    return kept


@dataclass
class _Run:
    tokens: list[int]
    table: BlockTable
    logits: list[torch.Tensor | None]
    computed: int = 0


def run_ragged(
    runner: ModelRunner, sequences: list[list[int]], seed: int, tables: list[BlockTable]
) -> list[torch.Tensor]:
    """Feeds all sequences through shared batches of random make-up.

    Each step takes some of the sequences with prompt chunks, single rows or several rows, in any
    order. Now and then wrong tokens are run first and rolled back, as rejected drafts are.

    Returns:
        For each sequence the float32 logits of all its positions, [length, vocab].
    """
    rng = random.Random(seed)
    runs = [
        _Run(tokens, table, [None] * len(tokens))
        for tokens, table in zip(sequences, tables, strict=True)
    ]
    while unfinished := [run for run in runs if run.computed < len(run.tokens)]:
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        segments, counts = [], []
        for run in chosen:
            left = len(run.tokens) - run.computed
            count = min(left, rng.choice([1, 1, 2, 5, 9, 33]))
            tokens = run.tokens[run.computed : run.computed + count]
            if rejected := rng.random() < 0.25:
                tokens = [(token + 7) % 100 for token in tokens]
            segments.append(Segment(tokens, run.computed, run.table, 0 if rejected else count))
            counts.append(0 if rejected else count)
        logits = runner.forward(segments).float()
        assert logits.shape[0] == sum(counts)
        for run, rows in zip(chosen, logits.split(counts), strict=True):
            for row in rows:
                run.logits[run.computed] = row
                run.computed += 1
    result = []
    for run in runs:
        rows = [row for row in run.logits if row is not None]
        assert len(rows) == len(run.tokens)
        result.append(torch.stack(rows))
    return result
