"""What a request has come to before it is run here, and who hears how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from gateway.continuation import Continuation, Piece
from slipstream.wire.proto import verifier_pb2

Heard = Callable[[int, verifier_pb2.GenerateResponse], None]


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of one continuation.

    Attributes:
        messages: what verifiers decided, in order; with the last word where it has ended.
        seen: so many of its tokens the client has. It may have more than is known: what was decided
            and is not known any more will be decided again, the same.
    """

    messages: tuple[verifier_pb2.GenerateResponse, ...] = ()
    seen: int = 0

    @property
    def tokens(self) -> list[int]:
        return [token.id for message in self.messages for token in message.tokens]

    @property
    def ended(self) -> bool:
        return bool(self.messages and self.messages[-1].finish_reason)


NO_PAST = Past()


def _ignore(index: int, message: verifier_pb2.GenerateResponse) -> None:
    pass


@dataclass(slots=True)
class Course:
    """How a request is run, beside what it asks for. One for each run.

    Attributes:
        pasts: of its continuations, by index; empty: none has begun.
        heard: is told of every message that is new, with the continuation's index, before the
            client is. Must not block.
        model_key: only verifiers of this key may decide (`ServedModel.key`); empty: any.
        kv_holder: host:port of a KvService that may have keys and values of the prompt; afterwards
            that of the verifier which served last.
    """

    pasts: Sequence[Past] = ()
    heard: Heard = _ignore
    model_key: str = ""
    kv_holder: str = ""

    def past(self, index: int) -> Past:
        return self.pasts[index] if index < len(self.pasts) else NO_PAST


def parted(
    message: verifier_pb2.GenerateResponse, at: int
) -> Iterator[verifier_pb2.GenerateResponse]:
    """The message, as two where a border behind its first `at` tokens lies within it."""
    if not 0 < at < len(message.tokens) + bool(message.finish_reason):
        yield message
        return
    first, second = verifier_pb2.GenerateResponse(), verifier_pb2.GenerateResponse()
    first.CopyFrom(message)
    second.CopyFrom(message)
    first.ClearField("finish_reason")
    del first.tokens[at:]
    del second.tokens[:at]
    yield first
    yield second


def pieces_of(
    continuation: Continuation, message: verifier_pb2.GenerateResponse, seen: int
) -> Iterator[Piece]:
    """What a message is to a client that has the first `seen` tokens, and what was final then.

    The end is always a piece of its own, with what is only final because nothing comes any more:
    so the text after so many tokens depends on nothing but the tokens. The end comes, too, where
    the client has all tokens; behind it the continuation takes nothing.
    """
    for half in parted(message, len(message.tokens)):
        for part in parted(half, seen - continuation.tokens):
            piece = continuation.take(part)
            if piece.completion_tokens > seen:
                yield piece
            elif piece.finish_reason is not None:
                # A stop string that the client has the text before.
                yield replace(piece, text="", tokens=(), offsets=()) if piece.tokens else piece
            if piece.finish_reason is not None:
                return
