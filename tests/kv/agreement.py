"""How often a layer-skipped model agrees with the full one, by the context that it drafts on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from slipstream.engine.batch import Segment
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.kv_rows import read_rows, write_rows
from slipstream.engine.runner import ModelRunner


def table_for(runner: ModelRunner, tokens: int) -> BlockTable:
    table = runner.pool.allocate(tokens)
    assert table is not None
    return table


def next_token(runner: ModelRunner, table: BlockTable, tokens: Sequence[int], start: int) -> int:
    return int(runner.forward([Segment(tokens, start, table, 1)])[0].argmax())


def generate(
    runner: ModelRunner, table: BlockTable, prompt: Sequence[int], count: int
) -> list[int]:
    """Greedy tokens; all but the last have keys and values in the pool afterwards."""
    tokens, start = list(prompt), 0
    for _ in range(count):
        new = next_token(runner, table, tokens[start:], start)
        start = len(tokens)
        tokens.append(new)
    return tokens


def agreement(
    full: ModelRunner,
    cheap: ModelRunner,
    full_table: BlockTable,
    tokens: Sequence[int],
    num_prompt: int,
    mode: str,
) -> int:
    """How many of the tokens after the prompt the cheap model draws too, each from the true ones
    before it, on a context of its own (own), on the full model's for the prompt (prompt), or for
    everything but the last token (commit)."""
    table, hits = table_for(cheap, len(tokens)), 0
    layers = torch.tensor([full.loaded.kv_layers.index(i) for i in cheap.loaded.kv_layers])
    places = torch.arange(len(layers))

    def fetch(start: int, end: int) -> None:
        data = read_rows(full.pool, full_table, layers, start, end)
        write_rows(cheap.pool, table, places, start, end, data.view(full.pool.dtype))

    computed = 0
    if mode != "own":
        computed = num_prompt - 1
        cheap.pool.enter(table, 0, computed)
        fetch(0, computed)
    for length in range(num_prompt, len(tokens)):
        hits += next_token(cheap, table, tokens[computed:length], computed) == tokens[length]
        if mode == "commit":
            fetch(computed, length)
        computed = length
    cheap.pool.release(table)
    return hits
