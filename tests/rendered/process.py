"""One container's process: started with what was rendered, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slipstream.core.child_processes import dying_with_us

_TAIL_CHARACTERS = 3000
_KILL_SECONDS = 10.0
# A state in the kernel's table of sockets.
_LISTEN = "0A"


@dataclass(frozen=True)
class Process:
    """A running container. What it writes is in `log`."""

    name: str
    inner: asyncio.subprocess.Process
    log: Path

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> Process:
        """Args:
        folder: its working directory, empty; the log is beside it.
        """
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 (a local folder)
        log = folder.with_suffix(".log")
        with log.open("ab") as output:
            inner = await asyncio.create_subprocess_exec(
                *dying_with_us(command, environment, folder),
                env=environment,
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(name, inner, log)

    @property
    def code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self.inner.returncode

    @property
    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-_TAIL_CHARACTERS:].strip()

    @property
    def busy(self) -> bool:
        """Whether any of its threads computes, or would if it had a core."""
        for stat in Path(f"/proc/{self.inner.pid}/task").glob("*/stat"):
            # It may have ended in between.
            with contextlib.suppress(OSError):
                if stat.read_text().rpartition(")")[2].split()[0] in "RD":
                    return True
        return False

    def terminate(self) -> None:
        if self.code is None:
            self.inner.send_signal(signal.SIGTERM)

    async def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it did not end in time."""
        try:
            return await asyncio.wait_for(self.inner.wait(), seconds)
        except TimeoutError:
            return None

    async def kill(self) -> None:
        """SIGKILL, also where it has ended."""
        if self.code is None:
            self.inner.kill()
        await asyncio.wait_for(self.inner.wait(), _KILL_SECONDS)

    def listening(self, ip: str) -> list[int]:
        """Ports of `ip` that anybody listens on: a pod has its address to itself."""
        plain = "".join(f"{int(part):02X}" for part in reversed(ip.split(".")))
        # gRPC opens sockets of IPv6, to addresses of IPv4 too.
        wanted = {plain, f"{'0' * 16}FFFF0000{plain}"}
        found: set[int] = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            rows = (line.split() for line in Path(table).read_text().splitlines()[1:])
            local = (row[1].split(":") for row in rows if row[3] == _LISTEN)
            found |= {int(port, 16) for address, port in local if address in wanted}
        return sorted(found)
