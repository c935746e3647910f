"""Child processes that do not outlive us."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def dies_with_us() -> Callable[[], None]:
    """For `preexec_fn`: the child gets SIGKILL when the thread that starts it, or all of us, ends,
    whatever the reason (Linux only)."""
    parent = os.getpid()

    def arrange() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # The parent may have died before the line above.
            if os.getppid() != parent:
                os._exit(1)

    return arrange
