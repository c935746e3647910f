"""The default model, greedy in float32: token for token what `transformers` generates."""

from __future__ import annotations

from pathlib import Path

import pytest

from slipstream.core.params import SamplingParams
from slipstream.engine.batch import Segment
from slipstream.engine.checkpoint import load_model
from slipstream.engine.draws import Draws
from slipstream.engine.runner import ModelRunner
from slipstream.engine.sequence import Sequence
from tests.golden.reference import LONGEST_PROMPT, NEW_TOKENS, Reference, prompts

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(1200)]
CHUNK = 256


def _segment(sequence: Sequence) -> Segment:
    assert sequence.table is not None
    end = min(len(sequence), sequence.computed + CHUNK)
    tokens = sequence.tokens[sequence.computed : end]
    return Segment(tokens, sequence.computed, sequence.table, int(end == len(sequence)))


def greedy(runner: ModelRunner, batch: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """Decodes all prompts side by side: prompt chunks of some beside single rows of others."""
    ends = runner.loaded.eos_token_ids
    params = SamplingParams(temperature=0.0)
    sequences = [Sequence(p, len(p), params, runner.loaded.fingerprint) for p in batch]
    for sequence in sequences:
        sequence.table = runner.pool.allocate(sequence.num_prompt + NEW_TOKENS)
    live = list(sequences)
    while live:
        segments = [_segment(sequence) for sequence in live]
        draws, row = Draws(runner.forward(segments)), 0
        for sequence, segment in zip(list(live), segments, strict=True):
            sequence.computed = segment.kv_length
            if segment.num_logits:
                sequence.append(draws.token(row, sequence))
                row += 1
                made = len(sequence) - sequence.num_prompt
                if made == NEW_TOKENS or sequence.tokens[-1] in ends:
                    live.remove(sequence)
    return [tuple(s.tokens[s.num_prompt :]) for s in sequences]


def test_prompts_are_what_the_claim_says(model_dir: Path) -> None:
    """Twenty different prompts, from a few tokens to a thousand."""
    lengths = [len(prompt) for prompt in prompts(model_dir)]
    assert len(set(prompts(model_dir))) == 20
    assert min(lengths) < 10
    assert lengths.count(LONGEST_PROMPT) == 2 == sum(n >= LONGEST_PROMPT for n in lengths)


def test_greedy_tokens_are_those_of_transformers(model_dir: Path, reference: Reference) -> None:
    """All twenty answers of up to 128 tokens are equal, out of one ragged batch."""
    runner = ModelRunner(load_model(model_dir, dtype="float32"), 512 << 20)
    ours = greedy(runner, prompts(model_dir))
    theirs = reference.tokens
    assert sum(len(answer) for answer in theirs) > 20 * NEW_TOKENS * 0.7
    for index, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
        assert mine == wanted, f"prompt {index}"


def test_the_reference_does_not_hang_on_its_padding(reference: Reference) -> None:
    """A forward pass over each prompt and answer alone, unpadded, has the same best tokens.

    The longest prompts are left out: they are the width of their batch and have no padding.
    """
    checked = [answer for answer in reference.answers if answer.unpadded is not None]
    assert len(checked) == 18
    for answer in checked:
        assert answer.unpadded == answer.tokens
