"""Processes that are killed, stopped and told to end, and come back at the same address."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from slipstream.bench.processes import Child
from slipstream.core.child_processes import dying_with_us
from slipstream.core.errors import DeadlineExceeded

_POLL = 0.2
# A service that was told to end has its own grace for what runs; beyond it and this it is stuck.
_STOP_SECONDS = 20.0


class Process:
    """One process of a stack, through all its lives. Used on one event loop.

    Args:
        is_ready: asks it whether it serves.

    Attributes:
        lives: how often it was started.
        complaints: what it did that no fault explains: ended by itself, did not end when told to,
            or with an exit code that is not 0.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        logs: Path,
        is_ready: Callable[[], Awaitable[bool]],
    ) -> None:
        self.name = name
        self.lives = 0
        self.complaints: list[str] = []
        self._command = list(command)
        self._log = logs / f"{name}.log"
        self._is_ready = is_ready
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False
        self._expected = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    async def start(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *dying_with_us(self._command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("SLIPSTREAM_")},
            )
        self.lives += 1
        self._stopped = self._expected = False
        self._watch = asyncio.create_task(self._keep(self._process))

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        """Starts it again where it ends though nobody meant it to."""
        code = await process.wait()
        if not self._expected:
            self.complaints.append(f"{self.name} ended by itself, with exit code {code}")
            await asyncio.sleep(1.0)
            await self.start()

    async def wait_ready(self, seconds: float) -> None:
        """Raises DeadlineExceeded, with the end of its log, where it does not serve in time."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not await self.is_ready():
            if asyncio.get_running_loop().time() > deadline:
                raise DeadlineExceeded(str(self._child().failure(f"is not ready in {seconds:g} s")))
            await asyncio.sleep(_POLL)

    async def is_ready(self) -> bool:
        return bool(self.pid) and not self._stopped and await self._is_ready()

    def stop(self) -> None:
        """SIGSTOP: it is there and does nothing."""
        self._stopped = True
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._stopped = False
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, which works on a stopped process, too."""
        self._expected = True
        self._signal(signal.SIGKILL)
        await self._wait(_STOP_SECONDS)

    async def terminate(self) -> None:
        """SIGTERM, and SIGKILL where that does not help: a complaint."""
        self._expected = True
        self._signal(signal.SIGTERM)
        if not await self._wait(_STOP_SECONDS):
            self.complaints.append(f"{self.name} did not end within {_STOP_SECONDS:g} s of SIGTERM")
            await self.kill()
        elif self._process is not None and self._process.returncode:
            code = self._process.returncode
            self.complaints.append(f"{self.name} ended with exit code {code} after SIGTERM")

    async def close(self) -> None:
        """Ends it for good."""
        self._expected = True
        if self._watch is not None:
            self._watch.cancel()
        self._signal(signal.SIGKILL)
        await self._wait(_STOP_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        if self.pid and self._process is not None:
            self._process.send_signal(number)

    async def _wait(self, seconds: float) -> bool:
        if self._process is None:
            return True
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _child(self) -> Child:
        assert self._process is not None
        return Child(self.name, self._process, self._log)
