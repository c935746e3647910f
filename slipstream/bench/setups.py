"""Starts the processes of a setup: what drafts, if anything does, and then the verifier."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from slipstream.bench.link import Link
from slipstream.bench.processes import child, free_address, wait_until_serving
from slipstream.bench.rows import NUM_SHARDS, SLOWDOWN, Setup
from slipstream.bench.services import Verifier
from slipstream.wire.proto import verifier_pb2_grpc
from slipstream.wire.transport import channel

_START_SECONDS = 300.0
_CONNECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """The processes of a setup.

    Attributes:
        drafters, verifiers: process ids by name. Only the drafters' are idle in plain decoding.
        eos_token_ids, exactness: as the verifier says.
        drafter: address of what drafts; empty where nothing does.
    """

    verifier: Verifier
    drafters: Mapping[str, int]
    verifiers: Mapping[str, int]
    eos_token_ids: frozenset[int]
    exactness: str
    drafter: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """What all setups of a run have in common.

    Attributes:
        cpus: the cores that may be used, in order.
        exactness: asked of verifiers.
        dtype, device: as the services take them.
    """

    model: Path
    logs: Path
    cpus: tuple[int, ...]
    exactness: str = "auto"
    dtype: str = "bfloat16"
    device: str = "cpu"

    @property
    def common(self) -> list[str]:
        return ["--model", str(self.model), "--dtype", self.dtype, "--device", self.device]

    def drafter_cpus(self, setup: Setup) -> tuple[int, ...]:
        return self.cpus if setup.all_cores else self.cpus[1:2] or self.cpus[:1]

    def verifier_cpus(self, setup: Setup) -> tuple[int, ...]:
        return self.cpus if setup.all_cores else self.cpus[:1]


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start. `address` is where it will serve."""

    name: str
    address: str
    words: list[str]


def service(module: str, address: str, cpus: Sequence[int]) -> list[str]:
    pinned = ["--threads", str(len(cpus)), "--cpus", ",".join(map(str, cpus))]
    return [sys.executable, "-m", module, "--listen", address, *pinned, "--log-level", "warning"]


def shard_commands(name: str, place: Place, cpus: Sequence[int], count: int) -> list[Command]:
    """A drafter in `count` processes, in starting order: the last one first, since each looks for
    the one behind it."""
    commands: list[Command] = []
    for index in reversed(range(count)):
        address = free_address()
        words = [*service("drafter_service", address, cpus), *place.common]
        words += ["--shard-index", str(index), "--shard-count", str(count)]
        if commands:
            words += ["--next", commands[-1].address]
        commands.append(Command(f"{name}-shard{index}", address, words))
    return commands


def drafter_commands(setup: Setup, place: Place) -> list[Command]:
    """What drafts, in starting order; the verifier talks to the last one."""
    if setup.drafter == "none":
        return []
    cpus, address, name = place.drafter_cpus(setup), free_address(), f"{setup.name}-drafter"
    if setup.drafter == "shards":
        return shard_commands(setup.name, place, cpus, NUM_SHARDS)
    if setup.drafter == "random":
        words = [sys.executable, "-m", "slipstream.bench.adversary", "--listen", address]
        return [Command(name, address, [*words, "--cpus", ",".join(map(str, cpus))])]
    words = [*service("drafter_service", address, cpus), *place.common, *setup.drafter_options]
    if setup.drafter == "slow":
        words += ["--slowdown", str(SLOWDOWN)]
    return [Command(name, address, words)]


def verifier_command(setup: Setup, place: Place, address: str, drafter: str) -> list[str]:
    """The verifier's command line. `drafter` is an address, or off."""
    words = [*service("verifier_service", address, place.verifier_cpus(setup)), *place.common]
    words += ["--exactness", place.exactness, "--precision", setup.precision]
    words += ["--placement", setup.placement, "--drafter", drafter]
    return [*words, *setup.verifier_options]


async def start_setup(
    stack: AsyncExitStack,
    setup: Setup,
    place: Place,
    *,
    drafter: bool,
    link: Link | None = None,
) -> Running:
    """Starts one after the other what a setup needs; all of it ends with `stack`.

    Not side by side: a service measures its own speed when it starts.

    Args:
        drafter: False leaves it out, where no row speculates.
        link: between verifier (its near end) and drafter; None: none but the machine's own.

    Raises:
        SlipstreamError: what `wait_until_serving` and `wait_for_drafter` raise.
    """
    pids: dict[str, int] = {}

    async def start(command: Command) -> None:
        started = await stack.enter_async_context(child(command.name, command.words, place.logs))
        await wait_until_serving(started, command.address, _START_SECONDS)
        pids[command.name] = started.process.pid

    drafters = drafter_commands(setup, place) if drafter else []
    for command in drafters:
        await start(command)
    address, name = free_address(), f"{setup.name}-verifier"
    wanted, advertised = drafters[-1].address if drafters else "off", address
    if link is not None:
        wanted = await link.forward(wanted)
        advertised = await link.forward(address, from_far_end=True)
    words = verifier_command(setup, place, address, wanted)
    await start(Command(name, address, [*words, "--advertise", advertised]))
    direct = await stack.enter_async_context(channel(address))
    verifier = Verifier(verifier_pb2_grpc.VerifierServiceStub(direct))
    if drafters:
        await verifier.wait_for_drafter(_CONNECT_SECONDS)
    model = await verifier.model()
    own = pids.pop(name)
    return Running(
        verifier,
        pids,
        {name: own},
        frozenset(model.eos_token_ids),
        str(model.exactness),
        drafters[-1].address if drafters else "",
    )
