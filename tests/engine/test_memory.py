"""Memory that is in use moves into huge pages, as it is; memory that waits stays unused."""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path

import pytest

from slipstream.engine.memory import resident_bytes, use_huge_pages

MIB = 1 << 20


def _huge_bytes() -> int:
    found = re.search(r"AnonHugePages: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found[1]) << 10 if found else 0


def _can_collapse() -> bool:
    """Whether this kernel gathers pages into huge ones when asked to."""
    try:
        block = mmap.mmap(-1, 4 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.write(bytes(4 * MIB))
        start = ctypes.addressof(ctypes.c_char.from_buffer(block))
        aligned = -(-start // (2 * MIB)) * 2 * MIB
        libc = ctypes.CDLL(None)
        done = libc.madvise(ctypes.c_void_p(aligned), ctypes.c_size_t(2 * MIB), 25)
    except (AttributeError, OSError, ValueError):
        return False
    return bool(done == 0)


@pytest.mark.skipif(not _can_collapse(), reason="the system has no huge pages to give")
def test_memory_in_use_moves_into_huge_pages() -> None:
    """A written block ends up in huge pages with its content; an untouched one takes no memory."""
    written = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = bytes(range(251)) * (32 * MIB // 251)
    written.write(content)
    waiting = mmap.mmap(-1, 256 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, 256 * MIB, 2 * MIB):
        waiting[at] = 1  # one page of each huge one
    before, huge = resident_bytes(), _huge_bytes()
    moved = use_huge_pages()
    assert moved >= 28 * MIB
    assert _huge_bytes() >= huge + 28 * MIB
    # What is resident may grow by the few missing pages of ranges that are almost full.
    assert resident_bytes() < before + 16 * MIB
    assert written[: len(content)] == content


def test_a_system_without_huge_pages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process's memory is not told or not to be moved, nothing happens."""

    def unknown(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", unknown)
    assert use_huge_pages() == 0
