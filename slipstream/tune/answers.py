"""What the full model says: answers to the tuning prompts, with their keys and values."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from slipstream.bench.records import Prompt
from slipstream.core.errors import ConfigurationError
from slipstream.core.params import SamplingParams
from slipstream.engine.batch import Segment
from slipstream.engine.draws import Draws
from slipstream.engine.kv_pool import BlockTable
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence

PREFILL_CHUNK = 256
# Products of at most so many rows round alike (see engine/exactness).
_ROWS = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt and what the full model says to it.

    Attributes:
        tokens: prompt and answer.
        table: where the full model's keys and values are, in its own pool. That of the last
            token is not there: nobody drafts on it.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    params: SamplingParams
    table: BlockTable

    @property
    def num_prompt(self) -> int:
        return len(self.prompt.token_ids)


def prefill(runner: ModelRunner, tokens: Seq[int], table: BlockTable) -> None:
    """Computes keys and values of `tokens` from position 0 on."""
    for start in range(0, len(tokens), PREFILL_CHUNK):
        runner.forward([Segment(tokens[start : start + PREFILL_CHUNK], start, table, 0)])


def answer(
    runner: ModelRunner, prompts: Seq[Prompt], max_tokens: int, temperature: float, seed: int
) -> list[Answer]:
    """Answers of up to `max_tokens` tokens, through the sampling rule; a seed for each prompt.

    Raises:
        ConfigurationError: the pool has no room for all of them at once.
    """
    answers: list[Answer] = []
    for start in range(0, len(prompts), _ROWS):
        group = prompts[start : start + _ROWS]
        sequences = [
            _start(
                runner, prompt, max_tokens, SamplingParams(temperature=temperature, seed=seed + i)
            )
            for i, prompt in enumerate(group, start=start)
        ]
        _generate(runner, sequences, max_tokens)
        for prompt, sequence in zip(group, sequences, strict=True):
            assert sequence.table is not None
            tokens = tuple(sequence.tokens)
            answers.append(Answer(prompt, tokens, sequence.params, sequence.table))
    return answers


def _start(
    runner: ModelRunner, prompt: Prompt, max_tokens: int, params: SamplingParams
) -> Sequence:
    ids = prompt.token_ids
    sequence = Sequence(ids, len(ids), params, runner.loaded.fingerprint)
    table = runner.pool.allocate(len(ids) + max_tokens)
    if table is None:
        raise ConfigurationError("the tuning prompts do not fit the KV pool; use fewer of them")
    sequence.table = table
    prefill(runner, ids[:-1], table)
    return sequence


def _generate(runner: ModelRunner, sequences: Seq[Sequence], max_tokens: int) -> None:
    """Extends all sequences, a row each in every pass, until they end."""
    live = list(sequences)
    for _ in range(max_tokens):
        if not live:
            return
        segments = []
        for sequence in live:
            assert sequence.table is not None
            segments.append(Segment(sequence.tokens[-1:], len(sequence) - 1, sequence.table, 1))
        draws = Draws(runner.forward(segments))
        for row, sequence in enumerate(live):
            sequence.append(draws.token(row, sequence))
        live = [s for s in live if s.tokens[-1] not in runner.loaded.eos_token_ids]
