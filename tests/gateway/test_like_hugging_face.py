"""Prompts are what `transformers` would make of the same folder."""

from __future__ import annotations

import json

import pytest
import transformers

from gateway.tokenizer import Tokenizer

TEMPLATES = {
    "blocks": (
        "{% for message in messages %}\n"
        "    {% if message['role'] == 'system' %}\n"
        "<<{{ message.content | trim }}>>\n"
        "    {% elif loop.last %}\n"
        "LAST {{ message['content'] }}{{ eos_token }}\n"
        "        {% break %}\n"
        "    {% else %}\n"
        "{{ bos_token + message['content'] }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}[answer]{% endif %}\n"
    ),
    "json": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ tools is none }}",
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "namespace": (
        "{%- set ns = namespace(found=false) -%}{%- for m in messages -%}"
        "{%- if m.role == 'user' -%}{%- set ns.found = true -%}{%- endif -%}{%- endfor -%}"
        "{{ ns.found }} {{ unk_token }} {{ pad_token is defined }} {{ strftime_now('%Y') }}"
    ),
}
MESSAGES = [
    {"role": "system", "content": "  Be <b>brief</b> & naïve "},
    {"role": "user", "content": "Hello 'there' 😀"},
    {"role": "assistant", "content": "<|im_end|> is text here"},
]


def load(folder, template, fallback):
    """Both implementations over one folder."""
    (folder / "chat_template.jinja").write_text(template)
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    config = {**special, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    fallback.save(str(folder / "tokenizer.json"))
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder), Tokenizer(folder)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates(name, tmp_path, hf_tokenizers):
    """The ids of a chat equal apply_chat_template's, for every feature that templates use."""
    reference, ours = load(tmp_path, TEMPLATES[name], hf_tokenizers["byte-level"])
    expected = reference.apply_chat_template(
        MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert list(ours.encode(ours.render(MESSAGES), add_special_tokens=False)) == list(expected)


@pytest.mark.parametrize("text", ["", "Hello", "a<|im_end|>b", "naïve 😀 " * 1000])
def test_special_tokens_of_plain_prompts(text, tmp_path, hf_tokenizers):
    """A completion's prompt has the special tokens that transformers adds, whatever its length."""
    hf = hf_tokenizers["byte-level"]
    reference, ours = load(tmp_path, "", hf)
    assert list(ours.encode(text, add_special_tokens=True)) == reference(text)["input_ids"]
    plain = reference(text, add_special_tokens=False)["input_ids"]
    assert list(ours.encode(text, add_special_tokens=False)) == plain


def test_truncation_of_the_file_is_ignored(tmp_path, hf_tokenizers):
    """A tokenizer file that carries truncation and padding does not cut or fill prompts."""
    hf_tokenizers["byte-level"].save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ids = Tokenizer(tmp_path).encode("Hello, world! Hello", add_special_tokens=False)
    assert list(ids) == hf_tokenizers["byte-level"].encode("Hello, world! Hello").ids[1:]
