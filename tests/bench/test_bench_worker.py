"""The transformers worker on a tiny random model, through the pipes that the benchmark uses."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slipstream.bench.peer import start_peer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
        bos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("tiny")
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder, model.eval()


async def test_worker_gives_the_tokens_of_generate(tiny, tmp_path):
    """Both rows give the greedy tokens of the model, stop at EOS, and count their passes."""
    folder, model = tiny
    prompt = [1, 7, 9, 7, 9, 7, 9, 11]
    reference = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=None
    )
    wanted = tuple(reference[0, len(prompt) :].tolist())
    none: frozenset[int] = frozenset()
    async with AsyncExitStack() as stack:
        peer = await start_peer(stack, folder, tmp_path, 1)
        assert peer.eos_token_ids == {2}
        plain = await peer.generate(prompt, 24, none, prompt_lookup=False)
        lookup = await peer.generate(prompt, 24, none, prompt_lookup=True)
        stop = wanted[5]
        ended = await peer.generate(prompt, 24, frozenset({stop}), prompt_lookup=False)
    assert plain.token_ids == wanted
    assert len(lookup.token_ids) == 24
    assert ended.token_ids == wanted[: wanted.index(stop) + 1]
    assert 0.0 < plain.ttft_seconds < plain.seconds
    assert plain.speculation is not None
    assert (plain.speculation.steps, plain.speculation.drafted) == (24, 0)
    assert lookup.speculation is not None
    assert lookup.speculation.drafted >= lookup.speculation.accepted
    assert lookup.speculation.steps + lookup.speculation.accepted == 24
