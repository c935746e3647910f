"""How much memory this process holds, giving back what it holds for nothing, and huge pages."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_HUGE_PAGE = 2 << 20
_MADV_COLLAPSE = 25  # Linux 6.1
# A range that has fewer of its pages grows by what is missing when it becomes a huge one.
_FULL = 0.97


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def available_bytes() -> int | None:
    """Memory that this process may still take: the machine's, or less in a container with a limit;
    None where the system does not tell."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable")))
    group = Path("/sys/fs/cgroup")
    # No such file outside of a container, and "max" where there is no limit.
    with contextlib.suppress(OSError, ValueError):
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    return min(found, default=None)


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it (glibc).

    Loading frees weights in many sizes between those that stay; for SmolLM2-135M it kept 70 MB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def use_huge_pages() -> int:
    """Moves this process's memory into huge pages, where they stay until it is freed.

    A decoding step reads every weight once, more pages of 4 KiB than the processor's address
    translation remembers. Whoever allocated the weights, and however opaque they are, they are
    anonymous memory, which Linux can gather for its owner (`MADV_COLLAPSE`); addresses stay.
    Only ranges that are in use as a whole are: others, such as a KV pool that waits for its
    sequences, would take up memory that nobody asked for.

    Returns:
        Bytes in huge pages now; 0 where the system has none to give, which costs speed only.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    moved = 0
    # Not Linux, an older kernel, or one that was told to never use them.
    with contextlib.suppress(AttributeError, OSError):
        for start, length in _full_ranges(libc):
            if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), _MADV_COLLAPSE) == 0:
                moved += length
    return moved


def _anonymous_ranges() -> Iterator[tuple[int, int]]:
    """Start and end of the process's private anonymous memory, cut to whole huge pages."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            first, last = (int(address, 16) for address in place.split("-"))
            start, end = -(-first // _HUGE_PAGE) * _HUGE_PAGE, last // _HUGE_PAGE * _HUGE_PAGE
            if start < end:
                yield start, end


def _full_ranges(libc: ctypes.CDLL) -> Iterator[tuple[int, int]]:
    """Start and length of runs of whole huge pages that are in memory now."""
    page = os.sysconf("SC_PAGE_SIZE")
    per_huge = _HUGE_PAGE // page
    for start, end in _anonymous_ranges():
        resident = (ctypes.c_ubyte * ((end - start) // page))()
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(end - start), resident):
            continue
        pages = bytes(resident)
        for i in range(0, len(pages), per_huge):
            if sum(bit & 1 for bit in pages[i : i + per_huge]) >= _FULL * per_huge:
                yield start + i * page, _HUGE_PAGE
