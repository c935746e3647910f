"""Faults on real processes: a Redis server, which is quick to start, and commands that end."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.chaos.history import StoreHistory
from tests.chaos.processes import Process
from tests.chaos.schedule import Fault
from tests.chaos.stack import Options, running_stack
from tests.chaos.storm import Storm
from tests.chaos.topology import STORE, Topology
from tests.integration.processes import ROOT, until

ALONE = Topology(0, 0, 0)


@pytest.fixture
async def stack(tmp_path):
    options = Options(tmp_path, tmp_path / "run", tmp_path / "logs")
    async with running_stack(ALONE, options, 1) as running:
        yield running


async def value(stack, new=None):
    """Of one key, which may be set before."""
    host, _, port = stack.addresses[STORE].partition(":")
    async with Redis(host=host, port=int(port), socket_timeout=20.0) as client:
        if new is not None:
            await client.set("key", new)
        return await client.get("key")


async def test_a_killed_store_has_its_data_and_an_emptied_one_has_none(stack):
    """SIGKILL, SIGTERM and SIGSTOP take nothing that was written; `empty` takes it all, and says
    when. The store's absence is on record."""
    history, said = StoreHistory(), []
    storm = Storm(stack, history, said.append)
    await value(stack, "kept")

    async def strike(kind):
        before = len(storm.struck)
        async with storm.blowing([Fault(0.0, kind, STORE, 0.2)]):
            await until(lambda: len(storm.struck) > before)

    for kind in ("kill", "stop", "term"):
        await strike(kind)
        assert await value(stack) == b"kept", kind
    assert stack.processes[STORE].lives == 3
    assert len(history.away) == 3
    assert not history.emptied
    await strike("empty")
    assert await value(stack) is None
    assert len(history.emptied) == 1
    assert history.was_away(history.emptied[0], history.emptied[0])
    assert len(said) == 4
    assert not stack.complaints()
    assert not storm.failures


async def test_a_target_is_hit_once_at_a_time(stack):
    """What is due while its target is still hit is left out, and said to be."""
    storm = Storm(stack, StoreHistory(), lambda _: None)
    faults = [Fault(0.0, "stop", STORE, 0.5), Fault(0.1, "kill", STORE, 0.1)]
    async with storm.blowing(faults):
        await until(lambda: len(storm.struck) == 2)
    assert [bool(each.skipped) for each in storm.struck] == [False, True]
    assert stack.processes[STORE].lives == 1
    await until(stack.processes[STORE].is_ready)


async def ready() -> bool:
    return True


async def test_who_ends_unasked_is_told_of_and_started_again(tmp_path):
    """An end that no fault explains is a complaint; so is an exit code after SIGTERM. SIGKILL is
    what the storm does itself."""
    short = Process("short", [sys.executable, "-c", "raise SystemExit(3)"], tmp_path, ready)
    await short.start()
    try:
        await until(lambda: short.lives > 1)
        assert short.complaints[0] == "short ended by itself, with exit code 3"
    finally:
        await short.close()
    rude = Process("rude", ["sleep", "60"], tmp_path, ready)
    await rude.start()
    await rude.kill()
    assert not rude.pid
    await rude.start()
    assert await rude.is_ready()
    await rude.terminate()
    assert rude.complaints == ["rude ended with exit code -15 after SIGTERM"]
    await rude.close()


async def test_nobody_outlives_the_storm(tmp_path):
    """Who is killed in the middle of a storm takes its processes along."""
    code = (
        "import asyncio, pathlib, sys\n"
        "from tests.chaos.processes import Process\n"
        "async def main():\n"
        "    async def ready(): return True\n"
        "    child = Process('sleeper', ['sleep', '60'], pathlib.Path(sys.argv[1]), ready)\n"
        "    await child.start()\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    words = Path(f"/proc/{pid}/cmdline")
    await until(lambda: words.read_bytes().startswith(b"sleep"))
    parent.kill()
    await parent.wait()
    await until(lambda: not (words.exists() and words.read_bytes()))


async def test_a_stopped_process_is_not_ready(tmp_path):
    """Nor does closing it wait for it to go on."""
    process = Process("sleeper", ["sleep", "60"], tmp_path, ready)
    await process.start()
    process.stop()
    assert not await process.is_ready()
    process.go_on()
    assert await process.is_ready()
    process.stop()
    async with asyncio.timeout(20):
        await process.close()
