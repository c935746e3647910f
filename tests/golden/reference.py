"""Twenty prompts and what `transformers` answers to them: the standard of greedy decoding.

The library runs once for all tests, in float32. Prompts of similar length go through `generate`
together, as the library means it: padded on the left. One by one they take several times as long.
Each answer is checked by a pass over its prompt alone, without padding. All of it runs in processes
of its own, behind everything else on the machine: see `pytest_collection_finish`.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.pool import AsyncResult
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

NEW_TOKENS = 128
LONGEST_PROMPT = 1000
# For the answers; only a process that hangs takes so long.
_SECONDS = 900.0
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What `generate(do_sample=False)` adds to a prompt: up to NEW_TOKENS, the end included.

    Attributes:
        unpadded: the best tokens of a pass over prompt and answer alone; None for the longest
            prompts, which are the width of their batch and have no padding.
    """

    tokens: tuple[int, ...]
    unpadded: tuple[int, ...] | None


class Reference:
    """Has the answers computed in processes beside this one, which end with it."""

    def __init__(self, folder: Path) -> None:
        everything = prompts(folder)
        by_length = sorted(range(len(everything)), key=lambda i: len(everything[i]))
        groups = (by_length[:_SHORT], by_length[_SHORT:_MIDDLE], by_length[_MIDDLE:])
        # Not forked: torch's threads would be missing in the children.
        pool = get_context("spawn").Pool(2, initializer=os.nice, initargs=(19,))
        self._begun: dict[tuple[int, ...], AsyncResult[list[Answer]]] = {
            tuple(group): pool.apply_async(_answers, (folder, [everything[i] for i in group]))
            for group in groups
        }
        pool.close()

    @functools.cached_property
    def answers(self) -> tuple[Answer, ...]:
        """In the order of the prompts; waits for those that are not there yet."""
        found: dict[int, Answer] = {}
        for group, begun in self._begun.items():
            found.update(zip(group, begun.get(_SECONDS), strict=True))
        return tuple(found[i] for i in sorted(found))

    @property
    def tokens(self) -> Tokens:
        return tuple(answer.tokens for answer in self.answers)


@functools.cache
def begin_reference(folder: Path) -> Reference:
    """The one of this session, begun when it is first asked for."""
    return Reference(folder)


def _answers(folder: Path, batch: list[tuple[int, ...]]) -> list[Answer]:
    # Two threads that share their cores with other processes wait for each other at every product.
    torch.set_num_threads(1)
    model = _model(folder)
    return [
        Answer(tokens, None if len(prompt) == LONGEST_PROMPT else _unpadded(model, prompt, tokens))
        for prompt, tokens in zip(batch, _generate(model, batch), strict=True)
    ]


@functools.cache
def _model(folder: Path) -> Any:
    """The library's model in float32, as it comes."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    # It would come in the middle of other tests' lines.
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def _unpadded(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[int, ...]:
    ids = torch.tensor([prompt + answer[:-1]])
    logits = model(input_ids=ids, logits_to_keep=len(answer), use_cache=False).logits[0]
    return tuple(logits.argmax(-1).tolist())


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
