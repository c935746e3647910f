"""`python tied.py PARENT COMMAND...`: becomes the command, which dies with the parent (Linux only).

What `slipstream.core.child_processes` does between fork and exec, done after exec: a fork of a
process that has gRPC's threads runs gRPC's handlers, which can crash the child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the line above.
    if os.getppid() == parent:
        os.execvp(command[0], command)
    sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
