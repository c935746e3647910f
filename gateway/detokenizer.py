"""Token ids to text, one token at a time, exactly as decoding them all at once would give.

For every sequence of ids the texts returned by `push` and `flush`, concatenated, equal
`tokenizer.decode(ids, skip_special_tokens=True)`. Nothing is returned that a later token could
change, so a client never sees half a character. The cost of a token does not grow with the text.
"""

from __future__ import annotations

import codecs
from typing import Protocol

from gateway.vocabulary import Vocabulary


class Detokenizer(Protocol):
    """State of one continuation's text."""

    def push(self, token_id: int) -> str:
        """Text that became final with this token."""

    @property
    def pending(self) -> str:
        """Complete characters that are held because a later token might still undo them."""

    def flush(self) -> str:
        """The rest, when no more tokens come."""


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
            self._utf8.decode(bytes([byte]))
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
        # As the decoder gives it: it may drop a space that leads the whole text.
        return self._difference(self._run) if self._run and complete else ""

    def flush(self) -> str:
        text = self._difference(self._run) if self._run else ""
        self._context = self._run[-1:] or self._context
        self._start_run()
        return text


def detokenizer_for(vocabulary: Vocabulary) -> Detokenizer:
    """A fresh one, for one continuation."""
    return _ByteLevel(vocabulary) if vocabulary.byte_level else _Windowed(vocabulary)
