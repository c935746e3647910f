"""Drafting along the full model's answers, on the context of production."""

from __future__ import annotations

from typing import Literal

import torch

from slipstream.core.errors import ConfigurationError
from slipstream.core.layer_plan import Skips
from slipstream.core.throughput import RunTally
from slipstream.engine.batch import Segment
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence
from slipstream.tune.answers import Answer, prefill

KvContext = Literal["own", "prompt", "commit"]
MAX_RUN = 16
# Rows of a pass. The kernels give up to four rows the same bits as one (engine/integer_kernel).
_ROWS = 4


class Drafting:
    """A copy of the model that drafts as the drafter service would.

    Rows are fed the tokens of the answer instead of the copy's own drafts, up to the first that
    it would have drafted otherwise: until there the two are the same, and there the run ends.

    Args:
        copy: the model at some precision, with every sublayer loaded; its pool is empty.
        full: the full model's runner, whose pool holds the answers.
        kv_context: own: the copy computes the whole context itself. prompt: it has the full
            model's keys and values of the prompt. commit: those of everything before a run.
    """

    def __init__(self, copy: ModelRunner, full: ModelRunner, kv_context: KvContext) -> None:
        self.copy = copy
        self._full = full
        self._kv_context = kv_context

    def run(self, answer: Answer, skips: Skips) -> RunTally:
        """Runs of up to MAX_RUN drafts over the whole answer, one after the other.

        Raises:
            ConfigurationError: the sublayers cannot be skipped, or the pool has no room.
        """
        pool = self.copy.pool
        table = pool.allocate(len(answer.tokens))
        if table is None:
            raise ConfigurationError("a tuning prompt does not fit the KV pool")
        try:
            with self.copy.loaded.skips.using(skips):
                return self._along(answer, table)
        finally:
            pool.release(table)

    def _along(self, answer: Answer, table: BlockTable) -> RunTally:
        tokens, position = answer.tokens, answer.num_prompt
        if self._kv_context == "own":
            prefill(self.copy, tokens[: position - 1], table)
        else:
            self._fetch(answer, table, 0, position - 1)
        sequence = Sequence(tokens[:position], position, answer.params, "")
        total = RunTally()
        while position < len(tokens):
            drafted = min(MAX_RUN, len(tokens) - position)
            accepted = self._one_run(answer, table, sequence, drafted)
            total += RunTally.of_run(accepted, drafted)
            # What was wrong is replaced by the full model's own token; a whole run goes on.
            end = min(position + accepted + (accepted < drafted), len(tokens))
            for token in tokens[position + accepted : end]:
                sequence.append(token)
            if self._kv_context == "commit":
                self._fetch(answer, table, position - 1, end - 1)
            position = end
        return total

    def _one_run(self, answer: Answer, table: BlockTable, sequence: Sequence, most: int) -> int:
        """How many drafts after `sequence` are right; it grows by them."""
        start = len(sequence)
        while (done := len(sequence) - start) < most:
            at, count = len(sequence), min(_ROWS, most - done)
            rows = answer.tokens[at - 1 : at - 1 + count]
            draws = Draws(self.copy.forward([Segment(rows, at - 1, table, count)]))
            for row, decided in enumerate(answer.tokens[at : at + count]):
                if draws.token(row, sequence) != decided:
                    return len(sequence) - start
                sequence.append(decided)
        return most

    def _fetch(self, answer: Answer, table: BlockTable, start: int, end: int) -> None:
        """The full model's keys and values of positions `start` to `end`."""
        pool = self.copy.pool
        pool.enter(table, start, end)
        with torch.inference_mode():
            pool.put_rows(table, start, self._full.pool.copy_rows(answer.table, start, end))
