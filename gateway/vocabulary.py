"""What each token id stands for: its piece, its bytes, whether decoding shows it."""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Character to byte, of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the other
    bytes for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


BYTE_ALPHABET = _byte_level_alphabet()


class Vocabulary:
    """Pieces, special tokens and the kind of decoder of one tokenizer. Immutable but for a cache.

    Attributes:
        tokenizer: of the tokenizers library.
        byte_level: whether pieces spell bytes (GPT-2's alphabet).
        byte_fallback: whether pieces like `<0x0A>` stand for bytes.
        special: ids that decoding leaves out.
    """

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self.tokenizer = tokenizer
        kinds = _decoder_kinds(json.loads(tokenizer.to_str()).get("decoder"))
        self.byte_level = kinds == ["ByteLevel"]
        self.byte_fallback = "ByteFallback" in kinds
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(token for token, entry in added.items() if entry.special)
        self._bytes: dict[int, bytes] = {}

    def shown(self, token_id: int) -> str | None:
        """The token's piece, or None where decoding skips it (special or unknown)."""
        return None if token_id in self.special else self.tokenizer.id_to_token(token_id)

    def byte_of(self, piece: str) -> int | None:
        """The byte that a piece like `<0x0A>` stands for, in vocabularies with byte fallback."""
        match = _BYTE_PIECE.fullmatch(piece) if self.byte_fallback else None
        return None if match is None else int(match[1], 16)

    def token_bytes(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def _token_bytes(self, token_id: int) -> bytes:
        piece: str | None = self.tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if token_id in self.special:
            return piece.encode()
        if self.byte_level:
            byte_values = [BYTE_ALPHABET.get(character) for character in piece]
            # An added token may hold characters outside the alphabet: it stands for itself.
            known = [value for value in byte_values if value is not None]
            return bytes(known) if len(known) == len(byte_values) else piece.encode()
        byte = self.byte_of(piece)
        if byte is not None:
            return bytes([byte])
        # After another token, since decoders drop the space that leads the whole text.
        context = [] if self._anchor is None else [self._anchor]
        before: str = self.tokenizer.decode(context)
        return str(self.tokenizer.decode([*context, token_id]))[len(before) :].encode()

    @cached_property
    def _anchor(self) -> int | None:
        for piece in ("a", "▁a", "e"):
            token: int | None = self.tokenizer.token_to_id(piece)
            if token is not None:
                return token
        return None


def _decoder_kinds(decoder: Any) -> list[str]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [str(part.get("type")) for part in decoder.get("decoders", [])]
    return [str(decoder.get("type"))]
