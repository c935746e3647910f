"""Real services as child processes: started on free ports, watched, and always killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from slipstream.bench.processes import free_address
from slipstream.wire.transport import is_serving

__all__ = ["ROOT", "WAIT_SECONDS", "Service", "free_address", "until"]

READY_SECONDS = 150.0
# For whatever comes in an instant where the machine has time for it.
WAIT_SECONDS = 60.0
ROOT = Path(__file__).parents[2]


class Service:
    """`python -m {role}_service` with its log in a file. Kill it with `kill`, whatever happens.

    Args:
        options: of its command line, beside --listen.
    """

    def __init__(self, role: str, address: str, options: Sequence[str], log: Path) -> None:
        self.role, self.address = role, address
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"{role}_service", "--listen", address, *options],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=ROOT,
                env={k: v for k, v in os.environ.items() if not k.startswith("SLIPSTREAM_")},
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> None:
        """Until its health check says SERVING; fails with the log where that takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        while not asyncio.run(is_serving(self.address)):
            assert self.process.poll() is None, f"{self.role} ended:\n{self.log}"
            assert time.monotonic() < deadline, f"{self.role} is not ready:\n{self.log}"
            time.sleep(0.1)

    def wait_log(self, words: str, seconds: float = WAIT_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.log:
            assert time.monotonic() < deadline, f"{self.role} never said {words!r}:\n{self.log}"
            time.sleep(0.05)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self, seconds: float = WAIT_SECONDS) -> int:
        """SIGTERM; returns the exit code."""
        self.process.terminate()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, which works on a stopped process, too."""
        self.process.kill()
        self.process.wait(WAIT_SECONDS)


async def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Waits until `condition` (plain or awaitable) holds."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        await asyncio.sleep(0.02)
