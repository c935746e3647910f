"""A ring of memory between two processes of one host, that no death of either can leak.

The puller makes it, without a name in any file system: the kernel frees it with the last process
that has it open. The holder opens it through /proc, which works where both are of one user and one
process namespace, and writes. It is sealed against shrinking, so that no peer can take the memory
away under a writer.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slipstream.wire.host import host_id
from slipstream.wire.proto import kv_pb2

_NAME = "slipstream-kv"
_HEADER = 4096
_TOKEN_BYTES = 16
_MOST_BYTES = 1 << 30


def memory_host() -> str:
    """Names what can share memory with this process: boot and process namespace, empty if none."""
    if sys.platform != "linux":
        return ""
    try:
        return f"{host_id()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Ring:
    """The memory, as either side sees it. Offsets count bytes since the start and only grow.

    Attributes:
        data: uint8 [size].
    """

    def __init__(self, descriptor: int, size: int) -> None:
        memory = mmap.mmap(descriptor, _HEADER + size)
        self._header = np.frombuffer(memory, dtype=np.uint8, count=_HEADER)
        self._count = np.frombuffer(memory, dtype=np.int64, count=1, offset=_TOKEN_BYTES)
        self.data: NDArray[np.uint8] = np.frombuffer(memory, dtype=np.uint8, offset=_HEADER)
        self.size = size

    @property
    def token(self) -> bytes:
        return self._header[:_TOKEN_BYTES].tobytes()

    @property
    def read(self) -> int:
        """Bytes that the puller is done with."""
        return int(self._count[0])

    def set_read(self, count: int) -> None:
        self._count[0] = count

    def place(self, written: int, size: int) -> tuple[int, int] | None:
        """Where the next `size` bytes go: offset in `data`, and the count written with them.

        They stand in one piece: what is left before the end is skipped. None while there is no
        room.
        """
        offset = written % self.size
        skipped = self.size - offset if offset + size > self.size else 0
        total, read = written + skipped + size, self.read
        # Where nothing is unread, what is skipped need not fit beside the bytes.
        if size > self.size or (total - read > self.size and written != read):
            return None
        return (written + skipped) % self.size, total


class OwnRing(Ring):
    """The puller's side: makes the memory; `offer` tells the holder of it.

    Raises:
        OSError: the system has no such memory, or none left.
    """

    def __init__(self, size: int) -> None:
        self.descriptor = os.memfd_create(_NAME, os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            # All of it now: running out of memory while writing would end the writer.
            os.posix_fallocate(self.descriptor, 0, _HEADER + size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            super().__init__(self.descriptor, size)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._header[:_TOKEN_BYTES] = np.frombuffer(
            secrets.token_bytes(_TOKEN_BYTES), dtype=np.uint8
        )

    @property
    def offer(self) -> Any:
        """A SharedBuffer message."""
        path = f"/proc/{os.getpid()}/fd/{self.descriptor}"
        return kv_pb2.SharedBuffer(path=path, token=self.token, size=self.size)

    def close(self) -> None:
        """Nobody can open it any more; it is freed when nobody reads or writes it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def open_ring(offer: Any) -> Ring | None:
    """The holder's side of a SharedBuffer; None where it cannot be opened or is not what it says.

    Only such memory is ever opened for writing, whatever path a peer names.
    """
    size = int(offer.size)
    if sys.platform != "linux" or not 0 < size <= _MOST_BYTES:
        return None
    try:
        if not str(Path(offer.path).readlink()).startswith(f"/memfd:{_NAME}"):
            return None
        descriptor = os.open(offer.path, os.O_RDWR | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        if not sealed or os.fstat(descriptor).st_size < _HEADER + size:
            return None
        ring = Ring(descriptor, size)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return ring if ring.token == offer.token else None
