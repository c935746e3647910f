"""A checksum on every message, so that bytes damaged on their way end a call and reach nobody.

A sealed message is the serialized one and, behind it, a protobuf field that no message has:

    tag of field 15000, fixed32 (3 bytes) | CRC-32 of the message (4 bytes, little endian)

Who does not know the field skips it. In a call whose client named it in the metadata
(`slipstream-seal: NAME`) the sum does not start from zero, but from the name, the method, the
direction and the message's number: a message that was lost, repeated or put into another call does
not match either, and the trailers of a stream tell (`slipstream-seal: COUNT`) how many responses it
had.

TCP's own 16 bits let one damaged packet in 65536 pass, and a box between two hosts that takes bytes
in and sends them on anew gives damaged ones a sum that is right.

What it does not cover: metadata, statuses and deadlines; the end of a stream of requests. Whoever
wants those safe, or safe from more than accidents, needs TLS.
"""

from __future__ import annotations

import secrets
import struct
from binascii import crc32
from typing import Final, Literal

FIELD: Final = 15_000
METADATA_KEY: Final = "slipstream-seal"
Direction = Literal["request", "response"]
_FIXED32: Final = 5
_NAME_BYTES = 8


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_TAG: Final = _varint(FIELD << 3 | _FIXED32)
SIZE: Final = len(_TAG) + 4
_sum = struct.Struct("<I")


def new_name() -> str:
    """Names a call; no two are the same."""
    return secrets.token_hex(_NAME_BYTES)


class Damaged(Exception):
    """A message is not what was sent, or not the one that was sent at this place."""


class Unsealed(Damaged):
    """A message has no seal: it was damaged there, or the peer does not know of seals."""


class Seal:
    """Seals the messages of one direction of a call, or opens them, in their order.

    Args:
        name: the call's, from its metadata; empty where its client gave none.
        method: `/package.Service/Method`.
        demanded: whether a message without a seal is refused.
    """

    __slots__ = ("_count", "_demanded", "_named", "_start")

    def __init__(
        self, name: str, method: str, direction: Direction, *, demanded: bool = True
    ) -> None:
        self._start = crc32(f"{direction} {method} {name}".encode())
        self._named = bool(name)
        self._demanded = demanded
        self._count = 0

    @property
    def end(self) -> tuple[tuple[str, str], ...]:
        """The metadata behind the last message of a stream: how many there were."""
        return ((METADATA_KEY, str(self._count)),)

    def _next(self) -> int:
        """What the sum of the next message starts from."""
        number = self._count
        self._count = number + 1
        return self._start ^ number & 0xFFFF_FFFF if self._named else 0

    def close(self, message: bytes) -> bytes:
        """The message, sealed."""
        return message + (_TAG + _sum.pack(crc32(message, self._next())))

    def open(self, sealed: bytes) -> bytes:
        """The message without its seal.

        Raises:
            Damaged: whoever reads it raises Corrupted, and says whose message it was.
        """
        start = self._next()
        if sealed[-SIZE:-4] != _TAG:
            if self._demanded:
                raise Unsealed("it came without its checksum")
            return sealed
        message = sealed[:-SIZE]
        if _sum.unpack(sealed[-4:])[0] != crc32(message, start):
            raise Damaged("its checksum does not match")
        return message
