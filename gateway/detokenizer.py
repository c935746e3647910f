"""Token ids to text, one token at a time, exactly as decoding them all at once would give.

For every sequence of ids the texts returned by `push` and `flush`, concatenated, equal
`tokenizer.decode(ids, skip_special_tokens=True)`. Nothing is returned that a later token could
change, so a client never sees half a character. The cost of a token does not grow with the text.
"""

from __future__ import annotations

import codecs
import json
import re
from functools import cached_property
from typing import Any, Protocol

from tokenizers import Tokenizer as HfTokenizer

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer(Protocol):
    """State of one continuation's text."""

    def push(self, token_id: int) -> str:
        """Text that became final with this token."""

    @property
    def pending(self) -> str:
        """Complete characters that are held because a later token might still undo them."""

    def flush(self) -> str:
        """The rest, when no more tokens come."""


def _byte_level_alphabet() -> dict[str, int]:
    """Character to byte, of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the other
    bytes for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


class Vocabulary:
    """What the detokenizers of one model share: pieces, special tokens, the kind of decoder."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self.tokenizer = tokenizer
        kinds = _decoder_kinds(json.loads(tokenizer.to_str()).get("decoder"))
        self.byte_level = kinds == ["ByteLevel"]
        self.byte_fallback = "ByteFallback" in kinds
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(token for token, entry in added.items() if entry.special)
        self._bytes: dict[int, bytes] = {}

    def detokenizer(self) -> Detokenizer:
        return _ByteLevel(self) if self.byte_level else _Windowed(self)

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
            byte_values = [_ALPHABET.get(character) for character in piece]
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


class _ByteLevel:
    """Byte-level vocabularies: the text is the bytes of all tokens, read as UTF-8 with U+FFFD for
    what is not valid, so an incremental UTF-8 decoder is exact."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._vocabulary.special:
            return ""
        return self._utf8.decode(self._vocabulary.token_bytes(token_id))

    @property
    def pending(self) -> str:
        return ""

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Windowed:
    """All other decoders: decode the last token again with each new one and return the difference.

    A run of byte tokens (`<0x0A>`) is read as a whole: one invalid byte turns all of the run into
    U+FFFD. It is held until another token ends it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._context: list[int] = []
        self._run: list[int] = []
        self._start_run()

    def _start_run(self) -> None:
        self._run = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._characters: list[str] = []
        self._valid = True

    def push(self, token_id: int) -> str:
        piece = self._vocabulary.shown(token_id)
        if not piece:
            return ""
        byte = self._vocabulary.byte_of(piece)
        if byte is None:
            text = self._difference([*self._run, token_id])
            self._context = [token_id]
            self._start_run()
            return text
        self._run.append(token_id)
        try:
            self._characters.append(self._utf8.decode(bytes([byte])))
        except UnicodeDecodeError:
            self._valid = False
        return ""

    def _difference(self, tokens: list[int]) -> str:
        decode = self._vocabulary.tokenizer.decode
        before: str = decode(self._context) if self._context else ""
        return str(decode([*self._context, *tokens]))[len(before) :]

    @property
    def pending(self) -> str:
        complete = self._valid and self._utf8.getstate()[0] == b""
        return "".join(self._characters) if complete else ""

    def flush(self) -> str:
        text = self._difference(self._run) if self._run else ""
        self._context = self._run[-1:] or self._context
        self._start_run()
        return text
