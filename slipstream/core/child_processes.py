"""Child processes that do not outlive us, on Linux.

Run as a file, `python -I -S child_processes.py PARENT COMMAND...`, this module asks the kernel to
kill it when its parent ends, and becomes the command: the same process, with all that it was given.
A `preexec_fn` would ask between fork and exec, but for it Python forks in earnest, which runs what
gRPC does at a fork; that has crashed children. So this takes no import of ours, and few others.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1


def dying_with_us(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """The command to start instead, some 20 ms slower: it gets SIGKILL when the thread that starts
    it, or all of us, ends, whatever the reason. Elsewhere than on Linux it is `command`.

    A thread that ends before those 20 ms are over is not noticed: then only our end counts.

    Args:
        environment: what it is started with; None: ours.
        folder: where it is started; None: where we are.

    Raises:
        OSError: what starting `command` itself would raise where there is no such program, or none
            that we may run. If the kernel then refuses the file (of another machine, say), the
            process says so on stderr and ends with code 1.
    """
    if sys.platform != "linux":
        return list(command)
    _check_program(command[0], environment, folder)
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _check_program(
    program: str, environment: Mapping[str, str] | None, folder: str | os.PathLike[str] | None
) -> None:
    # The program below has no need of it, and it takes longer than all the rest.
    from pathlib import Path

    # As exec finds it: by the child's PATH, and from the child's folder.
    codes = []
    for entry in [""] if "/" in program else os.get_exec_path(environment):
        path = Path(folder or "", entry, program)
        try:
            path.stat()
        except OSError as failure:
            codes.append(failure.errno or errno.ENOENT)
            continue
        if path.is_file() and os.access(path, os.X_OK):
            return
        codes.append(errno.EACCES)
    found = [code for code in codes if code not in {errno.ENOENT, errno.ENOTDIR}]
    code = [*found, codes[-1]][0]
    raise OSError(code, os.strerror(code), program)


def _become(parent: int, command: list[str]) -> None:
    """Returns never: the process is the command, or ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the line above.
    if os.getppid() != parent:
        sys.exit(1)
    # What Python ignores when it starts would stay ignored.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, _environment())  # noqa: S606 (that is the point)
    except OSError as failure:
        sys.exit(f"cannot run {command[0]}: {failure}")


def _environment() -> Mapping[bytes, bytes]:
    """As it was given to us: where the locale is C, Python adds LC_CTYPE when it starts."""
    try:
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123 (a slow import)
            given = file.read().split(b"\0")
    except OSError:
        return os.environb
    pairs = (variable.partition(b"=") for variable in given)
    return {name: value for name, equals, value in pairs if name and equals}


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
