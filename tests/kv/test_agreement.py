"""What the verifier's context is worth: the default model beside a copy that skips sublayers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slipstream.bench.kv import naive_plans
from slipstream.bench.questions import DEFAULT_QUESTIONS, choose, encode, load_questions
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from tests.kv.agreement import Agreement, generate, table_for

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
    asked = [prompt.token_ids for prompt in prompts]
    tables = [table_for(full, len(prompt) + NEW_TOKENS) for prompt in asked]
    texts = generate(full, tables, asked, NEW_TOKENS)
    agreement = Agreement(full, cheap, tables, texts, [len(prompt) for prompt in asked])
    own, prompt = agreement.at_once(prompt=False), agreement.at_once(prompt=True)
    commit = agreement.committed()
    assert own + 5 < prompt, (own, prompt, commit)
    assert prompt + 3 < commit, (own, prompt, commit)
