"""The machine and the software that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from slipstream import __version__


def cores() -> list[int]:
    """The processor cores that this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has used, user and system; None where /proc has no answer."""
    try:
        # The name, in parentheses, may hold spaces: fields are counted after it.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process, in bytes. `private` leaves out what it maps from files, such as libraries;
    memory that it made to share with another process is in it."""

    resident: int
    private: int


def memory(pid: int) -> Memory | None:
    """What a process holds now; None where /proc has no answer."""
    names = ("VmRSS", "RssAnon", "RssShmem")
    found = [_field(f"/proc/{pid}/status", name) for name in names]
    if None in found:
        return None
    resident, anonymous, shared = (int((value or "0").split()[0]) * 1024 for value in found)
    return Memory(resident, anonymous + shared)


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def load_average() -> float | None:
    """Processes that ran or wanted to, mean of the last minute; None where unknown."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def describe_machine(threads: int) -> dict[str, str | int | float | None]:
    """What a reader needs to judge the figures. `threads` is what the all-cores rows use."""
    memory = _field("/proc/meminfo", "MemTotal")
    return {
        "cpu_model": _field("/proc/cpuinfo", "model name") or platform.processor() or None,
        "cores": len(cores()),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "slipstream": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
