"""Models that tests everywhere share: the real default one and a tiny random one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slipstream.core.errors import SlipstreamError
from slipstream.models import resolve

if TYPE_CHECKING:
    from tests.golden.reference import Reference

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog while the drafter runs ahead.",
    "A verifier decides every token; a drafter guesses what it will decide.",
    "Numbers 0 1 2 3 4 5 6 7 8 9 and signs + - * / = ( ) [ ] { } are here, too.",
]


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The default model's folder in the user's cache, prepared if it is not there yet."""
    return resolve("default")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who waits for `transformers` comes last."""
    items.sort(key=_wants_reference)


def _wants_reference(item: pytest.Item) -> bool:
    return "reference" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """What `transformers` takes minutes for begins at once, beside the tests that come before."""
    wanted = any(map(_wants_reference, session.items))
    if wanted and not session.config.option.collectonly:
        from tests.golden.reference import begin_reference

        # Who asks for the fixture is told what is wrong with the model.
        with contextlib.suppress(SlipstreamError):
            begin_reference(resolve("default"))


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Reference:
    """What `transformers` answers to the prompts of `tests.golden.reference`."""
    from tests.golden.reference import begin_reference

    return begin_reference(model_dir)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers in float32 with a byte-level BPE tokenizer and a template.

    Its weights are spread wider than usual, so that its logits have no near-ties.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>"
    )
    fast.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("tiny-llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
