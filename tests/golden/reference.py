"""Twenty prompts and what `transformers` answers to them: the standard of greedy decoding.

`reference_tokens` runs the library once, in float32, and remembers the answers, so that all tests
that need them share the cost. Prompts of similar length go through `generate` together, as the
library means it: padded on the left. One by one they take several times as long. It runs in
processes of its own, a thread each: `begin_reference` lets it begin while a test computes ours.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

NEW_TOKENS = 128
LONGEST_PROMPT = 1000
# Borders between the groups of prompts of similar length.
_SHORT, _MIDDLE = 15, 18
Tokens = tuple[tuple[int, ...], ...]
_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_STORY = (
    "The harbour woke before the town did. Nets hung from the rails, and the first boats came "
    "back low in the water, gulls above them like torn paper. Old Ines counted the crates as she "
    "had for forty years, and wrote each number twice: once in the book, and once in her head. "
)
_NOTES = (
    "Station {n}: water level {a} cm, wind {b} m/s from the north-west, pressure {c} hPa. The "
    "gauge was cleaned and its battery replaced; next visit in {d} days.\n"
)
_CODE = '''def median(values):
    """Returns the middle of a list of numbers."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
'''


def _log(lines: int) -> str:
    return "".join(
        _NOTES.format(n=i, a=100 + i * 37 % 90, b=i * 5 % 19, c=990 + i * 7 % 40, d=3 + i % 11)
        for i in range(lines)
    )


def _texts() -> list[str]:
    return [
        _CHAT.format("What is the capital of Portugal, and what is it known for?"),
        _CHAT.format("Write a short poem about a lighthouse in winter."),
        _CHAT.format("Explain to a child why the sky is blue."),
        _CHAT.format("List five uses of a paper clip, one per line."),
        _CHAT.format("Translate to French: The train leaves at seven in the morning."),
        _CHAT.format("A farmer has 17 sheep and sells all but 9. How many are left? Think aloud."),
        _CHAT.format("Repeat this sentence ten times: Slow is smooth and smooth is fast."),
        _CHAT.format("Write a Python function that checks whether a string is a palindrome."),
        _CHAT.format("Summarize the text in two sentences.\n\n" + _STORY * 4),
        _CHAT.format("Which station had the strongest wind?\n\n" + _log(9)),
        _CHAT.format("Continue the story.\n\n" + _STORY * 2),
        _CODE,
        "Once upon a time",
        "1, 1, 2, 3, 5, 8, 13, 21,",
        "Der Zug nach Hamburg fährt heute von Gleis sieben, weil",
        "今天天气很好我们去公园",
        "{ }[ ]( )\t\n\n\n<|im_start|>;;;---===\u200b🙂🙃🙂🙃",
        _STORY,
        _log(40),
        _STORY * 20,
    ]


@functools.cache
def prompts(folder: Path) -> Tokens:
    """Token ids of the prompts, at most LONGEST_PROMPT each; some are cut to exactly that."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoded = (tokenizer.encode(text, add_special_tokens=False).ids for text in _texts())
    return tuple(tuple(ids[:LONGEST_PROMPT]) for ids in encoded)


def reference_model(folder: Path) -> Any:
    """The library's model in float32, as it comes."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@functools.cache
def begin_reference(folder: Path) -> dict[tuple[int, ...], Future[Tokens]]:
    """Has the answers computed in processes beside this one, which end with the last of them.

    Returns:
        What will be the answers, by the places of their prompts.
    """
    everything = prompts(folder)
    by_length = sorted(range(len(everything)), key=lambda i: len(everything[i]))
    groups = (by_length[:_SHORT], by_length[_SHORT:_MIDDLE], by_length[_MIDDLE:])
    # Not forked: torch's threads would be missing in the children.
    beside = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    begun = {
        tuple(group): beside.submit(_answers, folder, [everything[i] for i in group])
        for group in groups
    }
    beside.shutdown(wait=False)
    return begun


@functools.cache
def reference_tokens(folder: Path) -> Tokens:
    """What `generate(do_sample=False)` adds to each prompt: up to NEW_TOKENS, the end included."""
    answers: dict[int, tuple[int, ...]] = {}
    for group, future in begin_reference(folder).items():
        answers.update(zip(group, future.result(), strict=True))
    return tuple(answers[i] for i in sorted(answers))


def _answers(folder: Path, batch: list[tuple[int, ...]]) -> Tokens:
    # Two threads that share their cores with other processes wait for each other at every product.
    torch.set_num_threads(1)
    return tuple(_generate(reference_model(folder), batch))


@torch.inference_mode()
def _generate(model: Any, batch: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    end = model.generation_config.eos_token_id
    width = max(len(prompt) for prompt in batch)
    ids = torch.tensor([[end] * (width - len(p)) + list(p) for p in batch])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
    whole = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=end
    )
    return [_through(row, end) for row in whole[:, width:].tolist()]


def _through(tokens: list[int], end: int) -> tuple[int, ...]:
    """Up to the first `end`, that one included."""
    return tuple(tokens[: tokens.index(end) + 1] if end in tokens else tokens)
