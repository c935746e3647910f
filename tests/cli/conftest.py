"""Stand-in services: small processes that can be told how to behave."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.cli.supervisor import Service

# Notes its start in a file (which makes it ready), then does what the argument says.
_PROGRAM = """
import os, pathlib, signal, socket, sys, time
name, folder, behaviour = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
def note(what):
    with open(folder / "events", "a") as file:
        file.write(f"{name} {what}\\n")
def leave(*_):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in behaviour else leave)
note(f"started {os.getpid()}")
print(f"hello from {name}", flush=True)
if "fail" in behaviour:
    sys.exit(f"configuration of {name} is wrong")
if "talks" in behaviour:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(f"STATUS=loading {name}".encode(), os.environ["NOTIFY_SOCKET"])
if "slow" not in behaviour:
    (folder / f"{name}.ready").touch()
for _ in range(600):
    if "brief" in behaviour and (folder / "go").exists():
        sys.exit(3)
    time.sleep(0.1)
"""


class Stage:
    """Makes stand-ins and reads what they noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def service(self, name: str, behaviour: str = "", *, vital: bool = True) -> Service:
        async def is_ready() -> bool:
            return (self.folder / f"{name}.ready").exists()

        command = (sys.executable, "-c", _PROGRAM, name, str(self.folder), behaviour)
        return Service(name, command, is_ready, vital)

    def events(self) -> list[list[str]]:
        path = self.folder / "events"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self, name: str) -> list[int]:
        return [int(event[2]) for event in self.events() if event[:2] == [name, "started"]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture
def alive() -> Callable[[int], bool]:
    """Whether a process runs (a zombie does not)."""

    def look(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    return look
