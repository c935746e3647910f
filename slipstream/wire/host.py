"""Which host a process runs on, so that two peers can tell whether it is the same."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def host_id() -> str:
    """Names this boot of this machine, containers on it included; else the host's name."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
