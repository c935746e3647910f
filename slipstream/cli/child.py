"""One supervised child process: its log lines, its end, its death with ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from slipstream.core.child_processes import dying_with_us
from slipstream.core.errors import ConfigurationError

Say = Callable[[str], None]
_TAIL_LINES = 20
_CHUNK = 65536


class Child:
    """A running process of its own session; what it prints goes to `say`, line by line.

    Attributes:
        name: prefix of its lines.
        started: `time.monotonic()` of its start.
        tail: the last lines that it printed.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, say: Say) -> None:
        self.name = name
        self.process = process
        self.started = time.monotonic()
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._say = say
        self._pump = asyncio.create_task(self._lines())

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], say: Say, variables: Mapping[str, str] | None = None
    ) -> Child:
        """Starts `command` with our environment and some variables more.

        Raises:
            ConfigurationError: the program cannot be run at all.
        """
        environment = {**os.environ, **(variables or {})}
        try:
            process = await asyncio.create_subprocess_exec(
                *dying_with_us(command, environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
                # Ctrl-C at the terminal reaches us alone: we end the children in order.
                start_new_session=True,
            )
        except OSError as failure:
            raise ConfigurationError(f"cannot start the {name}: {failure}") from failure
        return cls(name, process, say)

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    async def wait(self) -> str:
        """Returns when it has ended, with how: `ended with exit code 2`, `was ended by SIGKILL`."""
        code = await self.process.wait()
        # Its last lines are still on their way; a grandchild may hold the pipe open for ever.
        await asyncio.wait([self._pump], timeout=1.0)
        if code >= 0:
            return f"ended with exit code {code}"
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    async def stop(self, grace: float, hurry: asyncio.Event) -> bool:
        """SIGTERM, then SIGKILL to its whole group after `grace` seconds or when `hurry` is set.

        Returns whether it ended by itself.
        """
        waits = [asyncio.ensure_future(self.process.wait()), asyncio.ensure_future(hurry.wait())]
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        await asyncio.wait(waits, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        in_time = self.ended
        self.kill()
        waits[1].cancel()
        await asyncio.wait([waits[0], self._pump], timeout=5.0)
        self._pump.cancel()
        return in_time

    def kill(self) -> None:
        """SIGKILL to what is left of its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def _lines(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _CHUNK:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._line(line)
        if rest:
            self._line(rest)

    def _line(self, raw: bytes) -> None:
        line = raw.decode("utf-8", errors="replace").rstrip()
        if line:
            self.tail.append(line)
            # A JSON object says itself which service it is of.
            self._say(line if line.startswith("{") else f"[{self.name}] {line}")
