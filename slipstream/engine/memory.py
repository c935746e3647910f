"""How much memory this process holds, and giving back what it holds for nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def give_back() -> None:
    """Returns freed memory to the system, where the C library would keep it (glibc).

    Loading frees weights in many sizes between those that stay; for SmolLM2-135M it kept 70 MB.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
