"""How few tokens a text can have, told from its length, without tokenizing it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from gateway.vocabulary import BYTE_ALPHABET

# The most characters that composition (NFC, NFKC) makes one of: the longest canonical
# decomposition, which the stability policy of Unicode keeps as it is.
_COMPOSED = 4
_SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"}


@dataclass(frozen=True, slots=True)
class LengthBound:
    """A token stands for at most `longest` characters of a text, beside those that are silent.

    Attributes:
        composed: in texts beyond ASCII, for so many times as many.
        silent: characters of which any number may be in no token, or in one.
    """

    longest: int
    composed: int
    silent: str

    def least_tokens(self, text: str) -> int:
        """The text has no fewer tokens than this. Costs a look at every character at most."""
        characters = len(text) - sum(map(text.count, self.silent))
        return math.ceil(characters / (self.longest * (1 if text.isascii() else self.composed)))


def length_bound(tokenizer: HfTokenizer) -> LengthBound | None:
    """The bound of a byte-level BPE, or of one that falls back to bytes; None of any other.

    Known only where every part of the tokenizer is known to lose nothing: an unknown word that
    becomes one token, or a normalizer that collapses spaces, would make any bound refuse prompts
    that fit.
    """
    content = json.loads(tokenizer.to_str())
    model, pieces = content["model"], content["model"].get("vocab") or {}
    before = list(_parts(content["pre_tokenizer"], "pretokenizers"))
    if model.get("type") != "BPE" or not all(map(_keeps, before)):
        return None
    composed = _composed(content["normalizer"])
    lost = _lost_bytes(pieces, model, before)
    if composed is None or lost is None:
        return None
    added = content["added_tokens"]
    strips = any(token["lstrip"] or token["rstrip"] for token in added)
    longest = max(map(len, [*pieces, *(token["content"] for token in added)]))
    return LengthBound(longest, composed, "".join({*lost, *(_SPACES if strips else "")}))


def _parts(part: Any, key: str) -> Iterator[Mapping[str, Any]]:
    if part is None:
        return
    if part["type"] == "Sequence":
        for inner in part[key]:
            yield from _parts(inner, key)
    else:
        yield part


def _keeps(pre_tokenizer: Mapping[str, Any]) -> bool:
    known = pre_tokenizer["type"] in _KEEPING_PRE_TOKENIZERS
    return known and pre_tokenizer.get("behavior") != "Removed"


def _composed(normalizer: Any) -> int | None:
    """How many characters may become one; None where nobody knows."""
    composed = 1
    for part in _parts(normalizer, "normalizers"):
        if part["type"] in ("NFC", "NFKC"):
            composed = _COMPOSED
        elif part["type"] == "Replace":
            found = part["pattern"].get("String")
            if not found or len(part["content"]) < len(found):
                return None
        elif part["type"] not in ("NFD", "NFKD", "Prepend"):
            return None
    return composed


def _lost_bytes(
    pieces: Mapping[str, int], model: Mapping[str, Any], before: list[Mapping[str, Any]]
) -> str | None:
    """ASCII characters that have no piece: they are dropped. None where others may be, too."""
    if any(part["type"] == "ByteLevel" for part in before):
        lost = [value for character, value in BYTE_ALPHABET.items() if character not in pieces]
    elif model.get("byte_fallback"):
        lost = [value for value in range(256) if f"<0x{value:02X}>" not in pieces]
    else:
        return None
    # Every character beyond ASCII has one of these bytes, and with it a token.
    if any(0x80 <= value < 0xC0 for value in lost):
        return None
    return "".join(chr(value) for value in lost if value < 0x80)
