from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable

import pytest

from slipstream.cli.child import Child
from slipstream.cli.supervisor import Policy, Service, Supervisor
from slipstream.core.errors import ConfigurationError, DeadlineExceeded, InternalError

QUICK = Policy(ready=60, poll=0.02, grace=30, backoff=0.02, max_backoff=0.05, quick_deaths=3)


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def test_start_ready_and_stop_in_order(stage, alive) -> None:
    """All are ready before the word is given; they stop in reverse order and none is left."""
    said: list[str] = []
    names = ["drafter", "verifier", "gateway"]
    supervisor = Supervisor([stage.service(name) for name in names], said.append, QUICK)
    ready_with: list[set[str]] = []

    def on_ready() -> None:
        ready_with.append({path.stem for path in stage.folder.glob("*.ready")})
        supervisor.stop()

    await asyncio.wait_for(supervisor.run(on_ready), 60)
    assert ready_with == [set(names)]
    assert [event[0] for event in stage.events() if event[1] == "stopped"] == names[::-1]
    assert not any(alive(pid) for name in names for pid in stage.pids(name))
    assert "[verifier] hello from verifier" in said


async def test_stages_of_the_start_are_told(stage) -> None:
    """What services say of their start is told while all wait, and not after that."""
    said: list[str] = []
    services = [stage.service("drafter", "talks"), stage.service("verifier", "talks")]
    supervisor = Supervisor(services, said.append, QUICK)
    run = asyncio.create_task(supervisor.run(supervisor.stop))
    await asyncio.wait_for(run, 60)
    told = sorted(line for line in said if "loading" in line)
    assert told == ["[drafter] loading drafter", "[verifier] loading verifier"]
    assert said[-1].startswith("Stopping, ")


async def test_early_end_shows_the_last_lines(stage, alive) -> None:
    """A service that ends before it is ready ends the start at once, with its own words."""
    services = [stage.service("drafter", "slow"), stage.service("verifier", "fail")]
    with pytest.raises(
        ConfigurationError,
        match=r"(?s)the verifier ended with exit code 1.*configuration of verifier is wrong",
    ):
        await Supervisor(services, lambda _: None, QUICK).run(lambda: None)
    assert not any(alive(pid) for pid in stage.pids("drafter"))


def test_lines_are_named_unless_they_name_themselves() -> None:
    """A JSON object stays one that a log collector can read; other lines say whose they are."""
    said: list[str] = []
    child = Child.__new__(Child)
    child.name, child.tail, child._say = "verifier", deque(), said.append
    for line in (b'{"service": "verifier"}\n', b"hello\n"):
        child._line(line)
    assert said == ['{"service": "verifier"}', "[verifier] hello"]


async def test_start_has_a_deadline(stage) -> None:
    """A service that never gets ready is named after the deadline."""
    services = [stage.service("drafter"), stage.service("verifier", "slow")]
    # However long its process takes to start.
    (stage.folder / "drafter.ready").touch()
    policy = Policy(ready=0.5, poll=0.02, grace=5)
    with pytest.raises(DeadlineExceeded, match="not ready after 0 s: verifier"):
        await Supervisor(services, lambda _: None, policy).run(lambda: None)


async def test_killed_service_comes_back(stage) -> None:
    """After SIGKILL one line is said, the service runs again, and the others never stopped."""
    said: list[str] = []
    services = [stage.service("drafter"), stage.service("verifier")]
    supervisor = Supervisor(services, said.append, QUICK)
    ready = asyncio.Event()
    run = asyncio.create_task(supervisor.run(ready.set))
    await asyncio.wait_for(ready.wait(), 60)
    os.kill(stage.pids("drafter")[0], signal.SIGKILL)
    await until(lambda: len(stage.pids("drafter")) == 2)
    supervisor.stop()
    await asyncio.wait_for(run, 60)
    assert "the drafter was ended by SIGKILL; starting it again in 0.02 s" in said
    assert len(stage.pids("verifier")) == 1


async def test_gives_up_on_a_vital_service_that_dies_again_and_again(stage, alive) -> None:
    """After the allowed number of quick deaths in a row everything is stopped, with the reason."""
    services = [stage.service("drafter", vital=False), stage.service("verifier", "brief")]
    supervisor = Supervisor(services, lambda _: None, QUICK)
    with pytest.raises(
        InternalError,
        match="giving up after 3 quick deaths: the verifier ended with exit code 3",
    ):
        await asyncio.wait_for(supervisor.run((stage.folder / "go").touch), 60)
    assert len(stage.pids("verifier")) == 3
    assert not any(alive(pid) for pid in stage.pids("drafter"))


async def test_a_drafter_that_keeps_dying_stops_nobody(stage, alive) -> None:
    """It is started again and again, in pauses that grow to a bound and are told as they grow."""
    said: list[str] = []
    services = [stage.service("drafter", "brief", vital=False), stage.service("verifier")]
    supervisor = Supervisor(services, said.append, QUICK)
    run = asyncio.create_task(supervisor.run((stage.folder / "go").touch))
    await until(lambda: run.done() or len(stage.pids("drafter")) > 2 * QUICK.quick_deaths)
    assert not run.done()
    assert len(stage.pids("verifier")) == 1
    assert alive(stage.pids("verifier")[0])
    supervisor.stop()
    await asyncio.wait_for(run, 60)
    told = [line.partition("; ")[2] for line in said if "starting it again" in line]
    assert [line[: len("starting it again in 0.0X s")] for line in told] == [
        f"starting it again in {pause} s" for pause in (0.02, 0.04, 0.05)
    ]
    assert "(3 quick deaths in a row; answers come without drafts" in told[2]


async def test_a_program_that_cannot_be_started_again(stage, alive) -> None:
    """A drafter whose program is gone for a while is tried again; nobody is stopped."""
    said: list[str] = []
    drafter = stage.service("drafter", "brief", vital=False)
    supervisor = Supervisor([drafter, stage.service("verifier")], said.append, QUICK)
    starts, start = [], supervisor._start

    async def failing(service):
        starts.append(service.name)
        if len(starts) == 3:
            raise ConfigurationError("cannot start the drafter: no memory")
        return await start(service)

    supervisor._start = failing
    run = asyncio.create_task(supervisor.run((stage.folder / "go").touch))
    await until(lambda: run.done() or len(starts) > 3)
    assert "cannot start the drafter: no memory; trying again in 0.05 s" in said
    assert alive(stage.pids("verifier")[0])
    supervisor.stop()
    await asyncio.wait_for(run, 60)


def test_pauses_are_bounded() -> None:
    """They double from the second quick death on, up to a minute, however many there are."""
    pauses = [Policy().pause(quick) for quick in (0, 1, 2, 3, 4, 8, 9, 100_000)]
    assert pauses == [0.5, 0.5, 1.0, 2.0, 4.0, 60.0, 60.0, 60.0]


async def test_deaf_service_is_killed(stage, alive) -> None:
    """A service that ignores SIGTERM is killed after the grace time, and that is said."""
    said: list[str] = []
    policy = Policy(ready=20, poll=0.02, grace=0.3)
    supervisor = Supervisor([stage.service("verifier", "deaf")], said.append, policy)
    await asyncio.wait_for(supervisor.run(supervisor.stop), 20)
    assert "the verifier did not stop in time and was killed" in said
    assert not alive(stage.pids("verifier")[0])


async def test_whoever_waits_for_the_end_is_told_how_to_hurry_it(stage, alive) -> None:
    """The first stop says that requests have their time, the second kills at once and says so."""
    said: list[str] = []
    policy = Policy(ready=20, poll=0.02, grace=60)
    supervisor = Supervisor([stage.service("verifier", "deaf")], said.append, policy)
    run = asyncio.create_task(supervisor.run(supervisor.stop))
    await until(lambda: any(line.startswith("Stopping, ") for line in said))
    supervisor.stop()
    await asyncio.wait_for(run, 60)
    assert said[-1] == "the verifier had not stopped yet and was killed"
    assert not alive(stage.pids("verifier")[0])


async def test_second_stop_does_not_wait(stage, alive) -> None:
    """Asked twice to stop, it kills at once instead of waiting for the grace time."""
    policy = Policy(ready=20, poll=0.02, grace=60)
    supervisor = Supervisor([stage.service("verifier", "deaf")], lambda _: None, policy)

    def twice() -> None:
        supervisor.stop()
        supervisor.stop()

    await asyncio.wait_for(supervisor.run(twice), 60)
    assert not alive(stage.pids("verifier")[0])


async def test_stop_before_ready(stage, alive) -> None:
    """Ctrl-C while services are still loading stops them, all at once; nothing is announced."""
    names = ["drafter", "verifier"]
    services = [stage.service(name, "slow deaf") for name in names]
    supervisor = Supervisor(services, lambda _: None, Policy(ready=60, poll=0.02, grace=0.3))
    ready: list[bool] = []
    order: list[str] = []
    end = supervisor._end

    async def noted(service: Service) -> None:
        order.append("asked")
        await end(service)
        order.append("ended")

    supervisor._end = noted  # type: ignore[method-assign]
    run = asyncio.create_task(supervisor.run(lambda: ready.append(True)))
    await until(lambda: all(stage.pids(name) for name in names))
    supervisor.stop()
    await asyncio.wait_for(run, 60)
    assert order == ["asked", "asked", "ended", "ended"]
    assert ready == []
    assert not any(alive(stage.pids(name)[0]) for name in names)


async def test_long_and_broken_lines() -> None:
    """Output of any length without a newline, and bytes that are no UTF-8, pass through."""
    script = (
        "import sys; w = sys.stdout.buffer.write; "
        "w(b'x' * 300000 + b'\\n\\n\\xff\\xfe last without newline')"
    )
    said: list[str] = []
    child = await Child.start("noisy", [sys.executable, "-c", script], said.append)
    assert await asyncio.wait_for(child.wait(), 20) == "ended with exit code 0"
    assert sum(line.count("x") for line in said) == 300_000
    assert said[-1] == "[noisy] \ufffd\ufffd last without newline"
    assert len(child.tail) <= 20


async def test_program_that_does_not_exist() -> None:
    """A command that cannot be run is a configuration error that names the service."""
    with pytest.raises(ConfigurationError, match="cannot start the verifier"):
        await Child.start("verifier", ["/no/such/program"], lambda _: None)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help exists on Linux only")
def test_children_die_with_a_killed_parent(stage, alive) -> None:
    """When the parent is ended by SIGKILL, which it cannot handle, its children end, too."""
    command = stage.service("verifier", "deaf").command
    script = (
        "import asyncio\n"
        "from slipstream.cli.child import Child\n"
        "async def main():\n"
        f"    await Child.start('verifier', {command!r}, print)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    asyncio.run(until(lambda: bool(stage.pids("verifier"))))
    child = stage.pids("verifier")[0]
    assert alive(child)
    parent.kill()
    parent.wait(10)
    asyncio.run(until(lambda: not alive(child)))
