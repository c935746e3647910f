"""Verifier and drafter as real gRPC services in this process, and what tests ask of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import torch

from drafter_service.adaptive import Adaptive, AdaptiveStage
from drafter_service.confidence import Stopping, make_early_stop
from drafter_service.draft import Part
from drafter_service.engine import DrafterEngine
from drafter_service.guesses import Assistance, make_assist
from drafter_service.kv_context import KvContext, KvMode
from drafter_service.servicer import DrafterServicer
from drafter_service.shard_context import ShardContext
from drafter_service.shard_engine import ShardEngine
from drafter_service.shard_link import Door, ShardLink
from drafter_service.shard_servicer import ShardServicer
from drafter_service.shards import ShardedStage
from slipstream.bench.faults import FaultProxy
from slipstream.core.layer_plan import Skips
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.zone import Zone
from slipstream.engine.runner import ModelRunner
from slipstream.engine.step_cost import StepCost
from slipstream.wire.host import host_id
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import (
    drafter_pb2,
    drafter_pb2_grpc,
    kv_pb2_grpc,
    shard_pb2_grpc,
    verifier_pb2_grpc,
)
from slipstream.wire.transport import Server
from tests.integration.processes import until
from verifier_service.drafter_choice import DrafterChoice, Drafters
from verifier_service.drafter_link import DrafterLink
from verifier_service.engine import VerifierEngine
from verifier_service.kv_holder import KvHolder
from verifier_service.kv_import import KvImports
from verifier_service.kv_servicer import KvServicer
from verifier_service.layouts import Drafter as DrafterPlace
from verifier_service.placement import Placement
from verifier_service.plan import Limits, Turn
from verifier_service.rounds import Rounds
from verifier_service.servicer import Identity, VerifierServicer
from verifier_service.speculation import Speculation, SpeculationSettings
from verifier_service.telemetry import Telemetry

# Where both are, as both say.
CORES = (0, 1)
# What an adaptive drafter begins with.
SKIPS = Skips(mlp=frozenset({1}))
# However busy the machine is, what gets on is not given up.
PATIENCE_SECONDS = 60.0
# Between two looks of a verifier that stands still.
_LOOK_SECONDS = 0.005
FIXED = SpeculationSettings(window=8, length=8)


def _never(turn: Turn) -> bool:
    return False


@dataclass(slots=True)
class Drafter:
    address: str
    engine: DrafterEngine
    context: KvContext
    servicer: DrafterServicer

    @property
    def outboxes(self):
        return self.servicer._outboxes

    @property
    def fallbacks(self) -> dict[str, int]:
        return dict(self.context.counters.fallbacks)


@dataclass(slots=True)
class Verifier:
    """A verifier.

    Attributes:
        kv: the servicer of its keys and values; tests may turn its incarnation.
        pause: seconds by which each of its steps is longer; tests may turn that, too.
        stands: asked before each step; while it says so nothing is computed, and keys and values
            are given away all the same.
    """

    address: str
    engine: VerifierEngine
    kv: KvServicer
    link: DrafterLink
    pause: float
    stands: Callable[[Turn], object] = _never

    def wait_for_drafts(self) -> None:
        """From now on nothing is decoded before the first drafts of all that a drafter drafts for:
        on a busy machine an answer may be over before its context is there."""
        self.stands = lambda turn: any(g.opened and not g.warm for g in turn.decoding)

    def wait_for_contexts(self, pair: Drafter) -> None:
        """Nor before that one drafter has their contexts, whether it is asked for drafts or not."""

        def lacking(turn: Turn) -> bool:
            drafts = list(pair.engine._drafts.items())
            there = {key.sequence_id for key, draft in drafts if not draft.loading}
            return any(g.opened and g.number not in there for g in turn.decoding)

        self.stands = lacking

    async def on_engine(self, action: Callable[[KvHolder], object]) -> object:
        return await asyncio.wrap_future(self.engine.call(lambda: action(self.engine.kv)))


@asynccontextmanager
async def drafter(
    runner: ModelRunner,
    mode: KvMode = "prompt",
    *,
    ngram: Assistance = "off",
    early_stop: Stopping = "off",
    adaptive: bool = False,
    zone: str = "",
    **options: object,
) -> AsyncIterator[Drafter]:
    options.setdefault("least_wait", PATIENCE_SECONDS)
    context = KvContext(runner, mode, **options)  # type: ignore[arg-type]
    servicer = DrafterServicer(context, CORES, zone=Zone(zone))
    parts: list[Part] = [context]
    if adaptive:
        cost = StepCost(0.001, 0.001, 0.001, runner.loaded.skips.num_layers)
        parts.append(Adaptive(runner, cost, start=SKIPS, taken=context.taken))
    engine = DrafterEngine(
        runner,
        servicer.send,
        stage=AdaptiveStage(runner) if adaptive else None,
        parts=parts,
        assist=make_assist(ngram),
        early_stop=make_early_stop(early_stop),
    )
    context.attach(engine.call, lambda: engine.counters.prefill_position_seconds)
    servicer.attach(engine)
    server = Server("127.0.0.1:0", ["slipstream.v1.DrafterService"])
    drafter_pb2_grpc.add_DrafterServiceServicer_to_server(servicer, server.grpc)
    port = await server.start()
    engine.start()
    try:
        yield Drafter(f"127.0.0.1:{port}", engine, context, servicer)
    finally:
        await server.stop(0)
        await asyncio.to_thread(engine.stop)
        if adaptive:
            runner.loaded.skips.use(Skips())
        assert runner.pool.num_used == 0


@asynccontextmanager
async def row(
    runners: Sequence[ModelRunner],
    mode: KvMode = "prompt",
    *,
    ngram: Assistance = "off",
    early_stop: Stopping = "off",
    through: FaultProxy | None = None,
    **options: object,
) -> AsyncIterator[Drafter]:
    """A drafter in two shards, each with a server and an engine's thread of its own.

    Args:
        through: what is between the two.
    """
    first, second = runners
    behind = ShardEngine(second, ShardContext(second))
    tail = Server("127.0.0.1:0", ["slipstream.v1.ShardService"])
    shard_pb2_grpc.add_ShardServiceServicer_to_server(ShardServicer(behind, "", 10.0), tail.grpc)
    address = f"127.0.0.1:{await tail.start()}"
    behind.start()
    if through is not None:
        through.target = address
        address = await through.start()

    stage = ShardedStage(first)
    options.setdefault("least_wait", PATIENCE_SECONDS)
    context = KvContext(first, mode, others=stage, **options)  # type: ignore[arg-type]
    servicer = DrafterServicer(context)
    engine = DrafterEngine(
        first,
        servicer.send,
        stage=stage,
        parts=[context, stage],
        assist=make_assist(ngram),
        early_stop=make_early_stop(early_stop),
    )
    stage.heard = context.heard
    context.attach(engine.call, lambda: engine.counters.prefill_position_seconds)
    servicer.attach(engine)
    head = Server("127.0.0.1:0", ["slipstream.v1.DrafterService"])
    drafter_pb2_grpc.add_DrafterServiceServicer_to_server(servicer, head.grpc)
    port = await head.start()
    engine.start()
    link = ShardLink(address, first, passes=0, patience=10.0, door=Door(head, servicer))
    linking = asyncio.create_task(link.run(engine, stage))
    try:
        await until(lambda: stage.depth)
        yield Drafter(f"127.0.0.1:{port}", engine, context, servicer)
        await until(lambda: engine.num_open == behind.num_open == 0)
    finally:
        linking.cancel()
        for server in (head, tail):
            await server.stop(0)
        for one in (engine, behind):
            await asyncio.to_thread(one.stop)
        assert first.pool.num_used == second.pool.num_used == 0


@asynccontextmanager
async def verifier(
    runner: ModelRunner,
    drafter_address: str = "",
    *,
    kv_address: str | None = None,
    incarnation: str = "first life",
    zone: str = "",
    limits: Limits | None = None,
    holder: KvHolder | None = None,
    pause: float = 0.008,
    drafting: SpeculationSettings = FIXED,
    placement: str = "separate",
) -> AsyncIterator[Verifier]:
    """Its drafter is connected when it is handed out.

    Args:
        kv_address: what it tells the drafter instead of its own address.
        drafter_address: several, too, separated by commas.
        incarnation: names its life.
        pause: seconds by which each of its steps is longer, so that the drafter keeps up.
    """
    forward = runner.forward

    def slowly(segments, hidden=None):
        time.sleep(one.pause)
        return forward(segments, hidden)

    server = Server("127.0.0.1:0", ["slipstream.v1.VerifierService", "slipstream.v1.KvService"])
    address = f"127.0.0.1:{server.bind()}"
    loaded = runner.loaded
    mailbox = Mailbox(asyncio.get_running_loop())
    endpoints = Endpoints(drafter_address or "127.0.0.1:1", "--drafter")
    drafters = Drafters(endpoints, loaded.fingerprint, Zone(zone), incarnation)
    link = DrafterLink(
        DrafterChoice(drafters),
        drafter_pb2.Hello(
            model_fingerprint=loaded.fingerprint,
            vocab_size=loaded.config.vocab_size,
            incarnation=incarnation,
            kv_address=address if kv_address is None else kv_address,
        ),
        mailbox,
        Rounds(Telemetry()),
    )
    speculation = Speculation(
        link.send,
        drafting,
        {1: 0.001, 32: 0.002},
        Placement(placement, DrafterPlace(host_id(), frozenset(CORES)), lambda cores: None),
    )
    patience = speculation.patience

    def patient(turn: Turn) -> float:
        seconds = patience(turn)
        return max(seconds, _LOOK_SECONDS) if one.stands(turn) else seconds

    speculation.patience = patient  # type: ignore[method-assign]
    limits = limits or Limits(strict=True)
    engine = VerifierEngine(runner, speculation, limits=limits, kv=holder)
    identity = Identity("tiny", "native", "strict", True)
    imports = KvImports(engine, address, incarnation, least=PATIENCE_SECONDS)
    servicer = VerifierServicer(engine, identity, link, mailbox, imports=imports)
    kv = KvServicer(engine, address, incarnation)
    verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server.grpc)
    kv_pb2_grpc.add_KvServiceServicer_to_server(kv, server.grpc)
    await server.start()
    await server.set_serving(True)
    one = Verifier(address, engine, kv, link, pause)
    runner.forward = slowly  # type: ignore[method-assign]
    engine.start()
    linking = asyncio.create_task(link.run(engine)) if drafter_address else None
    try:
        if linking is not None:
            await until(lambda: link.connected)
        yield one
    finally:
        if linking is not None:
            linking.cancel()
        await server.stop(0)
        await imports.close()
        await asyncio.to_thread(engine.stop)
        assert runner.pool.num_used == 0
        runner.forward = forward  # type: ignore[method-assign]


def rows_of(runner: ModelRunner, table, layers: tuple[int, ...], start: int, end: int):
    """Keys and values as the model sees them: [layers, 2, end - start, heads, dim]."""
    places = [runner.loaded.kv_layers.index(layer) for layer in layers]
    slots = table.slots[start:end]
    pool = runner.pool
    return torch.stack([torch.stack((pool.keys[i][slots], pool.values[i][slots])) for i in places])
