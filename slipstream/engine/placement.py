"""Where a model service computes: cores, threads, and how threads of Python share one."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

import torch

from slipstream.core.errors import ConfigurationError

# The engine's thread comes back from a kernel and wants the interpreter at once; the default
# lets the thread that serves the network keep it for 5 ms, a large part of a step.
_SWITCH_SECONDS = 0.0005


def place(cpus: str, threads: int, device: str) -> int:
    """Pins the process and sizes torch's thread pool. Call before any tensor work.

    Args:
        cpus: comma-separated core numbers, empty for no pinning.
        threads: torch threads; 0 means one for each core that the process may use.
        device: as `resolve_device` takes it; checked to be there.

    Returns:
        Torch threads.

    Raises:
        ConfigurationError: a core or the device does not exist.
    """
    resolve_device(device)
    if cpus:
        try:
            wanted = {int(core) for core in cpus.split(",")}
        except ValueError as failure:
            raise ConfigurationError(
                f"--cpus takes core numbers separated by commas, got {cpus!r}"
            ) from failure
        if not hasattr(os, "sched_setaffinity"):
            raise ConfigurationError("--cpus is not supported on this system; leave it out")
        try:
            os.sched_setaffinity(0, wanted)
        except OSError as failure:
            raise ConfigurationError(f"cannot run on cores {cpus}: {failure}") from failure
    torch.set_num_threads(threads or len(_own_cores()) or os.cpu_count() or 1)
    sys.setswitchinterval(_SWITCH_SECONDS)
    return torch.get_num_threads()


def thread_counts(threads: int) -> tuple[int, ...]:
    """All numbers of threads that a process placed with `threads` may compute with, least first.

    That number, half of it and so on. The bits of a result may depend on how many threads share the
    work, so strict shapes are probed with each of them (`exactness`), and no other is ever used.
    """
    return (threads,) if threads == 1 else (*thread_counts((threads + 1) // 2), threads)


def compute_on(cores: tuple[int, ...], threads: int) -> None:
    """Moves the whole process to some cores. On the computing thread.

    Every thread keeps the cores that it was started with, so each is moved by itself. A core that
    is not ours leaves things as they are: a worse place costs time only.

    Args:
        threads: that it was placed with; as many of them compute as have a core each and are one of
            `thread_counts`.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)
    torch.set_num_threads(max(n for n in thread_counts(threads) if n <= max(1, len(cores))))


def computing_cores(device: torch.device) -> frozenset[int]:
    """Cores that a model on `device` is computed on; none on another device than the CPU."""
    return _own_cores() if device.type == "cpu" else frozenset()


def _own_cores() -> frozenset[int]:
    """Cores that this process may run on; none where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset()
    return frozenset(os.sched_getaffinity(0))


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where there is one, else cpu; others stay as they are.

    Raises:
        ConfigurationError: it is none of auto, cpu, cuda and cuda:N, or is not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if there else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", device)
    if found is None:
        raise ConfigurationError(f"--device is auto, cpu, cuda or cuda:N, got {device!r}")
    if device != "cpu" and not there:
        raise ConfigurationError(
            f"--device {device}: this machine or this torch has no CUDA device"
        )
    if found[1] and int(found[1]) >= there:
        raise ConfigurationError(f"--device {device}: the last CUDA device is cuda:{there - 1}")
    return device
