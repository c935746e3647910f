"""Children are waited for, explained when they die, and never left behind."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import pytest

from slipstream.bench import processes
from slipstream.bench.peer import read_line
from slipstream.bench.processes import child, free_address, wait_until_serving
from slipstream.core.errors import ConfigurationError, DeadlineExceeded
from slipstream.wire.transport import Server


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_ends_with_its_context_even_on_failure(tmp_path):
    """An exception in the middle of the run leaves no process."""
    pids = []

    async def fail():
        async with child("sleeper", python("import time; time.sleep(600)"), tmp_path) as sleeper:
            pids.append(sleeper.process.pid)
            assert alive(sleeper.process.pid)
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert not alive(pids[0])


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    """SIGKILL follows when the grace is over."""
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.2)
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(600)"
    )
    start = time.monotonic()
    async with child("stubborn", python(code), tmp_path, pipes=True) as stubborn:
        assert await stubborn.process.stdout.readline() == b"ready\n"
    assert stubborn.process.returncode == -9
    assert time.monotonic() - start < 600, "it was waited for"


async def test_cancelling_the_run_ends_its_children(tmp_path):
    """What Ctrl-C does to the run reaches the processes."""
    started = asyncio.Event()
    pids = []

    async def run():
        async with child("sleeper", python("import time; time.sleep(600)"), tmp_path) as sleeper:
            pids.append(sleeper.process.pid)
            started.set()
            await asyncio.sleep(600)

    task = asyncio.create_task(run())
    await asyncio.wait_for(started.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 60)
    assert not alive(pids[0])


async def test_a_service_that_dies_is_explained_by_its_log(tmp_path):
    """The error has the exit code and the end of what the process wrote."""
    code = "import sys; sys.exit('the model is missing')"
    async with child("verifier", python(code), tmp_path) as dying:
        with pytest.raises(ConfigurationError, match=r"exit code 1(.|\n)*the model is missing"):
            await wait_until_serving(dying, free_address(), 60)


async def test_a_service_that_never_serves_meets_the_deadline(tmp_path):
    """NOT_SERVING is not ready: the wait ends with an error at its deadline."""
    server = Server("127.0.0.1:0", ["example"])
    address = f"127.0.0.1:{await server.start()}"
    try:
        async with child("slow", python("import time; time.sleep(600)"), tmp_path) as slow:
            with pytest.raises(DeadlineExceeded, match="slow was not ready"):
                await wait_until_serving(slow, address, 0.3)
            await server.set_serving(True)
            await wait_until_serving(slow, address, 60.0)
    finally:
        await server.stop(0.0)


async def test_a_worker_that_dies_or_hangs_is_an_error(tmp_path):
    """An end of the pipe and silence both raise, with the log of the worker."""
    async with child("dead", python("raise MemoryError('too big')"), tmp_path, pipes=True) as dead:
        with pytest.raises(ConfigurationError, match="too big"):
            await read_line(dead, 60)
    code = "import time; time.sleep(600)"
    async with child("mute", python(code), tmp_path, pipes=True) as mute:
        with pytest.raises(DeadlineExceeded, match="did not answer"):
            await read_line(mute, 0.1)


async def test_an_unwritable_log_folder_is_a_clear_error(tmp_path):
    """The log's path is in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"one\.log"):
        async with child("one", python("pass"), tmp_path / "file"):
            pass
