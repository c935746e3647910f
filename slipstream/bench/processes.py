"""Child processes of the benchmark: started, waited for with a deadline, always ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from slipstream.core.errors import ConfigurationError, DeadlineExceeded
from slipstream.wire.transport import is_serving

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0
_TAIL_CHARACTERS = 2000
# A line of the worker's answers carries every token of a generation.
_LINE_BYTES = 4 * 1024 * 1024
# Below what systems give out themselves (Linux from 32768 on, others from 49152).
_PORTS = range(20_000, 32_768)
# One after the other from anywhere on: two processes that start services at once do not meet.
_turn = itertools.count(random.randrange(len(_PORTS)))


@dataclass(frozen=True, slots=True)
class Child:
    """A running child. `log` is the file that its stderr (and unread stdout) goes to."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def failure(self, what: str) -> ConfigurationError:
        """An error that says what happened, with the end of the log."""
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:]
        return ConfigurationError(f"{self.name} {what}; the end of {self.log}:\n{tail.strip()}")


def free_address(ports: range = _PORTS) -> str:
    """A loopback address whose port nobody listens on, and which nobody is given by chance.

    The system gives any of its own range to whoever connects or asks for port 0. Until a service
    listens there, or while it is started again, such a port would go to another.

    Args:
        ports: to choose from, below that range.

    Raises:
        ConfigurationError: all of them are taken.
    """
    for _ in range(len(ports)):
        port = ports[next(_turn) % len(ports)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"
    raise ConfigurationError(f"no free port from {ports[0]} to {ports[-1]}")


def _open_log(log: Path) -> BinaryIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("wb")
    except OSError as failure:
        raise ConfigurationError(f"cannot write the log {log}: {failure}") from failure


def end_on_signals() -> None:
    """SIGTERM and SIGHUP end the current task as Ctrl-C does: through every `finally`."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None:
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, task.cancel)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _GRACE_SECONDS)
    except TimeoutError:
        pass
    finally:
        # Also where a second Ctrl-C cuts the wait short: no child may be left behind.
        if process.returncode is None:
            process.kill()
    await process.wait()


@asynccontextmanager
async def child(
    name: str, command: Sequence[str], logs: Path, *, pipes: bool = False
) -> AsyncIterator[Child]:
    """Runs a command for the length of the context; then SIGTERM and, 10 s later, SIGKILL.

    Args:
        name: names the log file, `logs/NAME.log`.
        pipes: whether stdin and stdout are pipes to us.

    Raises:
        ConfigurationError: the log file cannot be opened.
    """
    log = logs / f"{name}.log"
    with _open_log(log) as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if pipes else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if pipes else output,
            stderr=output,
            limit=_LINE_BYTES,
            # Ctrl-C reaches us alone: we end the children in order, after the last request.
            start_new_session=True,
        )
    try:
        yield Child(name, process, log)
    finally:
        await _end(process)


async def wait_until_serving(service: Child, address: str, seconds: float) -> None:
    """Returns when the service's health check says SERVING.

    Raises:
        ConfigurationError: the process ended instead.
        DeadlineExceeded: it did not get there in `seconds`.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while not await is_serving(address):
        if service.process.returncode is not None:
            raise service.failure(f"ended with exit code {service.process.returncode}")
        if asyncio.get_running_loop().time() > deadline:
            raise DeadlineExceeded(f"{service.name} was not ready after {seconds:.0f} s")
        await asyncio.sleep(_POLL_SECONDS)
