"""A service that is told to stop while it loads: nothing can be lost, so it does not wait."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import TINY
from tests.integration.processes import ROOT, free_address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="waits at named pipes")
SERVICES = {
    "verifier": ("verifier_service", signal.SIGTERM),
    "drafter": ("drafter_service", signal.SIGINT),
    "shard": ("drafter_service", signal.SIGTERM, "--shard-index", "1", "--shard-count", "2"),
}
PIPE = "weights.safetensors"


def endless(model: Path, folder: Path) -> Path:
    """A model folder whose weights never come to an end: reading them waits for a pipe."""
    shutil.copytree(model, folder)
    os.mkfifo(folder / PIPE)
    return folder


@contextmanager
def being_read(pipe: Path, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """From the moment on when somebody waits for what comes out of the pipe."""
    deadline = time.monotonic() + 150
    while True:
        # Fails while nobody reads.
        with contextlib.suppress(OSError):
            end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield
    finally:
        os.close(end)


def test_ends_at_once(tiny: Path, tmp_path: Path) -> None:
    """A signal while weights are read, which never comes to an end here, ends it with 0, no
    complaint, no child, and whether or not it answers probes."""
    running = []
    try:
        for name, (module, number, *options) in SERVICES.items():
            folder = endless(tiny, tmp_path / name)
            command = [sys.executable, "-m", module, "--model", str(folder), *TINY, *options]
            process = subprocess.Popen(
                [*command, "--listen", free_address(), "--health", free_address()],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            running.append((process, number, folder / PIPE))
        for process, number, pipe in running:
            with being_read(pipe, process):
                process.send_signal(number)
                assert process.wait(60) == 0
            assert process.stderr is not None
            lines = process.stderr.read().decode().splitlines()
            assert [line for line in lines if "loading the model" not in line] == []
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
    finally:
        for process, _, _ in running:
            process.kill()
            process.wait(60)


def test_stops_as_the_first_process_of_a_container() -> None:
    """The handlers are there before the slow imports: such a process has no default action."""
    script = (
        "import os, signal, runpy, sys, slipstream.wire.starting as s\n"
        "begin = s.starting\n"
        "def starting():\n"
        "    begin()\n"
        "    assert 'torch' not in sys.modules\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "s.starting = starting\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "runpy.run_module('verifier_service', run_name='__main__', alter_sys=True)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT, timeout=200)
    assert ended.returncode == 0
