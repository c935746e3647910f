"""The model's tokenizer, from its folder: text to ids, chats to ids, ids to text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from gateway.chat_template import ChatTemplate, choose
from gateway.detokenizer import Detokenizer, detokenizer_for
from gateway.length_bound import length_bound
from gateway.vocabulary import Vocabulary
from slipstream.core.errors import CheckpointError, InvalidRequest
from slipstream.core.model_folder import cannot_read, is_file


def _read_json(path: Path) -> dict[str, Any]:
    if not is_file(path):
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as failure:
        raise CheckpointError(f"{path} is not valid JSON: {failure}") from failure
    except OSError as failure:
        raise cannot_read(path, failure) from failure
    return content if isinstance(content, dict) else {}


def _read_template(path: Path) -> str | None:
    try:
        return path.read_text("utf-8") if is_file(path) else None
    except UnicodeDecodeError as failure:
        raise CheckpointError(f"{path} is not UTF-8: {failure}") from failure
    except OSError as failure:
        raise cannot_read(path, failure) from failure


def _special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for config in configs:
        for key, value in config.items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                found.setdefault(key, content)
    return found


class Tokenizer:
    """Immutable after loading; shared by all requests.

    Args:
        folder: a model folder with `tokenizer.json`; `tokenizer_config.json` and
            `chat_template.jinja` are used where they are.

    Attributes:
        length_bound: how few tokens a text can have; None where that is not known.

    Raises:
        CheckpointError: a file is missing or broken; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not is_file(path):
            reason = "has no tokenizer.json" if folder.is_dir() else "is not a folder"
            raise CheckpointError(f"cannot load the tokenizer: {folder} {reason}")
        try:
            self._tokenizer = HfTokenizer.from_file(str(path))
        # The library raises bare Exception for a file that it cannot read.
        except Exception as failure:
            raise CheckpointError(f"cannot load {path}: {failure}") from failure
        # Some files carry the truncation of their training: a prompt is never cut silently.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
        source = _read_template(folder / "chat_template.jinja")
        if source is None:
            source = choose(config.get("chat_template"))
        self._template = None if source is None else ChatTemplate(source, special)
        self._vocabulary = Vocabulary(self._tokenizer)
        self.length_bound = length_bound(self._tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Token ids of `text`, with the model's own begin tokens if `add_special_tokens`.

        A second for each megabyte or so, in which other threads can run.
        """
        # Of all its ways to encode, the library lets other threads run in those for batches only.
        [encoding] = self._tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        return tuple(encoding.ids)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat that waits for the assistant, as text with special tokens.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions or a plain prompt"
            )
        return self._template.render(messages)

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for one continuation."""
        return detokenizer_for(self._vocabulary)

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds inside a text; special tokens as they are written."""
        return self._vocabulary.token_bytes(token_id)
