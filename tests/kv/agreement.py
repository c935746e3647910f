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


def generate(
    runner: ModelRunner, tables: Sequence[BlockTable], prompts: Sequence[Sequence[int]], count: int
) -> list[list[int]]:
    """Each prompt with `count` greedy tokens, side by side; all but the last token have keys and
    values in the pool afterwards."""
    texts, starts = [list(prompt) for prompt in prompts], [0] * len(prompts)
    for _ in range(count):
        places = zip(texts, starts, tables, strict=True)
        batch = [Segment(text[start:], start, table, 1) for text, start, table in places]
        best = runner.forward(batch).argmax(-1).tolist()
        starts = [len(text) for text in texts]
        for text, token in zip(texts, best, strict=True):
            text.append(token)
    return texts


class Agreement:
    """The texts of the full model, for the cheap one to guess each new token of from the true ones
    before it.

    Args:
        tables: the texts' keys and values in the full model's pool.
        num_prompt: tokens of each text that are its prompt.
    """

    def __init__(
        self,
        full: ModelRunner,
        cheap: ModelRunner,
        tables: Sequence[BlockTable],
        texts: Sequence[Sequence[int]],
        num_prompt: Sequence[int],
    ) -> None:
        self._full, self._cheap = full, cheap
        self._places = list(zip(tables, texts, num_prompt, strict=True))
        self._layers = torch.tensor(
            [full.loaded.kv_layers.index(i) for i in cheap.loaded.kv_layers]
        )

    def _fetch(self, source: BlockTable, table: BlockTable, start: int, end: int) -> None:
        """Gives the cheap model the full one's keys and values of these positions."""
        data = read_rows(self._full.pool, source, self._layers, start, end)
        target = torch.arange(len(self._layers))
        write_rows(self._cheap.pool, table, target, start, end, data.view(self._full.pool.dtype))

    def at_once(self, *, prompt: bool) -> int:
        """Tokens guessed right on its own context behind the prompt, and of the prompt its own or,
        with `prompt`, the full model's: known as the true tokens are, one pass takes them all."""
        hits = 0
        for source, text, num_prompt in self._places:
            table, start = table_for(self._cheap, len(text)), 0
            if prompt:
                start = num_prompt - 1
                self._cheap.pool.enter(table, 0, start)
                self._fetch(source, table, 0, start)
            wanted = text[num_prompt:]
            rows = self._cheap.forward([Segment(text[start:-1], start, table, len(wanted))])
            hits += sum(a == b for a, b in zip(rows.argmax(-1).tolist(), wanted, strict=True))
            self._cheap.pool.release(table)
        return hits

    def committed(self) -> int:
        """Tokens guessed right on the full model's context up to the last token but one; texts of
        equally many new tokens go side by side."""
        (count,) = {len(text) - num_prompt for _, text, num_prompt in self._places}
        tables, hits = [], 0
        for source, text, num_prompt in self._places:
            tables.append(table_for(self._cheap, len(text)))
            self._cheap.pool.enter(tables[-1], 0, num_prompt - 1)
            self._fetch(source, tables[-1], 0, num_prompt - 1)
        for made in range(count):
            batch, wanted = [], []
            for table, (_, text, num_prompt) in zip(tables, self._places, strict=True):
                at = num_prompt - 1 + made
                batch.append(Segment(text[at : at + 1], at, table, 1))
                wanted.append(text[at + 1])
            best = self._cheap.forward(batch).argmax(-1).tolist()
            hits += sum(a == b for a, b in zip(best, wanted, strict=True))
            for table, (source, _, num_prompt) in zip(tables, self._places, strict=True):
                at = num_prompt - 1 + made
                self._fetch(source, table, at, at + 1)
        for table in tables:
            self._cheap.pool.release(table)
        return hits
