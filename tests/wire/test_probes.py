"""What an orchestrator's probes hear of a service, from its start to its end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipstream.core.errors import ConfigurationError
from slipstream.engine.loop import EngineLoop
from slipstream.wire import probes as module
from slipstream.wire.probes import HUNG_LOOP_SECONDS, Probes, probed
from slipstream.wire.transport import Server
from tests.integration.processes import free_address, until

NAMES = ("startup", "readiness", "", "liveness")
LOADING = (False, False, False, True)
SERVING = (True, True, True, True)
LEAVING = (True, False, False, True)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Engine(EngineLoop):
    """Does one thing in a step, then nothing."""

    def __init__(self, thing=lambda: None) -> None:
        super().__init__()
        self._thing = thing

    def step(self) -> bool:
        thing, self._thing = self._thing, lambda: None
        thing()
        return False

    def close(self) -> None:
        pass


def answers(probes: Probes) -> tuple[bool, ...]:
    return tuple(probes.status(name) == module.Status.SERVING for name in NAMES)


def ask(address: str, service: str = "") -> bool:
    """As the kubelet does; from any thread."""
    with grpc.insecure_channel(address) as link:
        stub = health_pb2_grpc.HealthStub(link)
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return reply.status == health_pb2.HealthCheckResponse.SERVING


async def heard(address: str) -> tuple[bool, ...]:
    return tuple([await asyncio.to_thread(ask, address, name) for name in NAMES])


async def test_a_life() -> None:
    """Loading, started and not ready as a row of shards may be, serving, draining, stopping."""
    address = free_address()
    with probed(address, 300.0) as probes:
        assert await heard(address) == LOADING
        server = Server("127.0.0.1:0", ["test"], probes=probes)
        server.bind()
        assert await heard(address) == LOADING
        await server.start()
        assert await heard(address) == LEAVING
        await server.set_serving(True)
        assert await heard(address) == SERVING
        await server.set_serving(False)
        assert await heard(address) == LEAVING
        await server.set_serving(True)
        await server.stop(0)
        assert await heard(address) == LEAVING
        with pytest.raises(grpc.RpcError, match="there are readiness, liveness and startup"):
            await asyncio.to_thread(ask, address, "readyness")
    with pytest.raises(grpc.RpcError) as ended:
        await asyncio.to_thread(ask, address)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_loop_that_hangs(monkeypatch, caplog) -> None:
    """Answers come while the event loop does nothing, and liveness says so after its time; once it
    turns again, all is well. Both are said once."""
    monkeypatch.setattr(module, "_BEAT_SECONDS", 0.02)
    caplog.set_level("INFO", "slipstream.wire.probes")
    address, told = free_address(), []

    def watch() -> None:
        deadline = time.monotonic() + 50
        while not told and time.monotonic() < deadline:
            if not ask(address, "liveness") and not ask(address, "liveness"):
                told.append(ask(address, "startup"))

    with probed(address, 300.0) as probes:
        probes.started()
        assert await asyncio.to_thread(ask, address, "liveness")
        watcher = threading.Thread(target=watch)
        with monkeypatch.context() as patch:
            # Before and after it, on a busy machine, such a pause would be none of the loop's.
            patch.setattr(module, "HUNG_LOOP_SECONDS", 0.2)
            watcher.start()
            # The event loop's own thread waits: nothing turns.
            watcher.join(60)
        assert told == [True]
        beat = probes._beat_at
        await until(lambda: probes._beat_at > beat)
        assert probes.status("liveness") == module.Status.SERVING
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "not alive: the event loop has hung" in line]) == 1
    assert lines.count("alive again") == 1


def test_bounds() -> None:
    """A loop hangs after its seconds and not before; the engine is asked with its own."""
    clock, asked = Clock(), []
    probes = Probes(300.0, clock)
    clock.now += HUNG_LOOP_SECONDS
    assert probes.trouble() == ""
    probes.watch(lambda bound: asked.append(bound) or "")
    assert probes.trouble() == ""
    clock.now += 0.1
    assert "hung for 20 s" in probes.trouble()
    probes.beat()
    assert probes.trouble() == ""
    assert asked == [300.0, 300.0]


async def test_an_engine_that_hangs() -> None:
    """A step that never ends is trouble after its time, not before; one that waits for work, has
    ended its long step or was stopped is well; readiness is another matter."""
    going, inside = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        going.wait(30)

    engine = Engine(hang)
    assert engine.trouble(0.0) == ""
    engine.start()
    try:
        await asyncio.to_thread(inside.wait, 30)
        probes = Probes(0.05)
        probes.watch(engine.trouble)
        probes.started()
        probes.ready = True
        await until(lambda: engine.trouble(0.05))
        assert "a step of the engine has not ended" in engine.trouble(0.05)
        assert engine.trouble(300.0) == ""
        assert answers(probes) == (True, True, True, False)
        going.set()
        await until(lambda: not engine.trouble(0.05))
        assert answers(probes) == SERVING
    finally:
        going.set()
        await asyncio.to_thread(engine.stop)
    assert answers(probes) == SERVING


async def test_an_engine_that_dies() -> None:
    """A thread that has ended by itself is not alive."""

    def die() -> None:
        raise ZeroDivisionError

    engine = Engine(die)
    probes = Probes(300.0)
    probes.watch(engine.trouble)
    running = asyncio.wrap_future(engine.start())
    with pytest.raises(ZeroDivisionError):
        await running
    assert probes.trouble() == "the engine's thread has ended"
    assert answers(probes) == (False, False, False, False)


async def test_off_and_in_use() -> None:
    """Off takes no port; one in use is told with its option."""
    with probed("off", 300.0) as probes:
        assert answers(probes) == LOADING
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with (
            pytest.raises(ConfigurationError, match=f"{address} .--health.: the port is in use"),
            probed(address, 300.0),
        ):
            pass
    with pytest.raises(ConfigurationError, match="--health must be host:port"), probed("no", 1.0):
        pass
