"""What the verifier's context is worth: the default model beside a copy that skips sublayers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slipstream.bench.kv import naive_plans
from slipstream.bench.questions import DEFAULT_QUESTIONS, choose, encode, load_questions
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.kv.agreement import agreement, generate, table_for

POOL_BYTES = 2**26
NEW_TOKENS = 30


@pytest.mark.timeout(300)
@torch.inference_mode()
def test_the_verifiers_context_raises_agreement(model_dir: Path) -> None:
    """With four attention and four MLP sublayers skipped: the prompt's keys and values raise the
    agreement with the full model, those of the committed tokens raise it again."""
    questions = choose(load_questions(DEFAULT_QUESTIONS), 3)
    prompts, _ = encode(questions, model_dir, NEW_TOKENS)
    full = ModelRunner(load_model(model_dir), POOL_BYTES)
    plan = naive_plans(full.loaded.config.num_hidden_layers, "native")["4+4"]
    cheap = ModelRunner(load_model(model_dir, plan=plan), POOL_BYTES)
    hits = dict.fromkeys(("own", "prompt", "commit"), 0)
    for prompt in prompts:
        table = table_for(full, len(prompt.token_ids) + NEW_TOKENS)
        tokens = generate(full, table, prompt.token_ids, NEW_TOKENS)
        for mode in hits:
            hits[mode] += agreement(full, cheap, table, tokens, len(prompt.token_ids), mode)
    assert hits["own"] + 5 < hits["prompt"], hits
    assert hits["prompt"] + 3 < hits["commit"], hits
