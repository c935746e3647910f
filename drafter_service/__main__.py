"""`python -m drafter_service`: exit code 0 after a clean stop, 2 on a configuration error."""

from __future__ import annotations

from slipstream.wire.starting import imported, starting, with_engine

if __name__ == "__main__":
    # Before the imports that take seconds.
    starting()
    with_engine("drafter")

import asyncio
import contextlib
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from drafter_service.adaptive import Adaptive, AdaptiveCounters, AdaptiveStage
from drafter_service.confidence import make_early_stop
from drafter_service.engine import DrafterEngine
from drafter_service.guesses import make_assist
from drafter_service.kv_context import KvContext
from drafter_service.metrics import DrafterMetrics, Watch, shard_metrics
from drafter_service.servicer import DrafterServicer
from drafter_service.settings import ADAPTIVE, Settings
from drafter_service.shard_context import ShardContext
from drafter_service.shard_engine import ShardEngine
from drafter_service.shard_link import Door, ShardLink
from drafter_service.shard_servicer import ShardServicer
from drafter_service.shard_status import FirstShard
from drafter_service.shards import ShardedStage
from drafter_service.slow_stage import SlowStage
from drafter_service.stage import LocalStage, Stage
from slipstream.core import stages
from slipstream.core.layer_plan import LayerPlan, Skips
from slipstream.discovery.zone import Zone
from slipstream.engine.automatic_plan import automatic_plan
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import step_seconds
from slipstream.engine.loop import model_thread
from slipstream.engine.model_files import ModelFolder
from slipstream.engine.placement import compute_on, computing_cores, place, resolve_device
from slipstream.engine.runner import ModelRunner
from slipstream.engine.step_cost import fit_step_cost
from slipstream.models.head_basis import head_basis
from slipstream.models.plans import shipped_plan
from slipstream.wire.probes import Probes, probed
from slipstream.wire.process import run_service, until_stopped
from slipstream.wire.proto import drafter_pb2_grpc, shard_pb2_grpc
from slipstream.wire.starting import orderly_stop
from slipstream.wire.telemetry.metrics import Exposition, exposed
from slipstream.wire.telemetry.tracing import Tracing, tracing_to
from slipstream.wire.tls import among_peers
from slipstream.wire.transport import Server

log = logging.getLogger(__name__)
SERVICE = "slipstream.v1.DrafterService"
SHARD_SERVICE = "slipstream.v1.ShardService"


def _layer_plan(settings: Settings, folder: ModelFolder) -> LayerPlan:
    """The plan that was asked for; the one to begin with where it is adaptive."""
    if settings.layer_plan not in ("auto", ADAPTIVE):
        return LayerPlan.load(Path(settings.layer_plan))
    return shipped_plan(folder.fingerprint) or automatic_plan(folder)


def _head_basis(settings: Settings, folder: ModelFolder, plan: LayerPlan) -> Path | None:
    """What a screened head is made from, for who has the head and is to screen it."""
    last = settings.index == settings.shard_count - 1
    if not last or plan.head_precision != "screened":
        return None
    return head_basis(folder.path, folder.fingerprint)


def _make_adaptive(
    settings: Settings, runner: ModelRunner, start: Skips, context: KvContext
) -> Adaptive | None:
    if settings.layer_plan != ADAPTIVE:
        return None
    cost = fit_step_cost(runner, repeats=5)
    return Adaptive(runner, cost, start=start, taken=context.taken)


def _make_runner(settings: Settings) -> tuple[ModelRunner, Skips]:
    """The model, ready to run, and what the plan leaves out to begin with."""
    stages.tell("loading the model")
    folder = ModelFolder(settings.model)
    plan = _layer_plan(settings, folder)
    skips = plan.skips
    if settings.layer_plan == ADAPTIVE:
        plan = plan.with_skips(Skips())
    loaded = load_model(
        folder,
        dtype=settings.dtype,
        device=resolve_device(settings.device),
        plan=plan,
        shard=(settings.index, settings.shard_count),
        head_basis=_head_basis(settings, folder, plan),
    )
    runner = ModelRunner(loaded, int(settings.kv_cache_gib * 2**30))
    log.info(
        "%s, %s on %s, %.0f MB of weights, %d KV blocks",
        settings.model.name, plan.describe(), loaded.device, loaded.weight_bytes / 1e6,
        runner.pool.num_blocks,
    )  # fmt: skip
    # What is compiled or laid out at first use should not be when the first request comes.
    step_seconds(runner, (1, 2, 4, 8), runs=2)
    return runner, skips


async def serve(settings: Settings) -> None:
    """Binds, loads, serves until it is told to stop, ends cleanly."""
    exposition = Exposition("drafter", settings.model_name)
    tracing, tls = tracing_to("drafter", settings.otlp_endpoint), settings.tls()
    probing = probed(settings.health, settings.hung_step)
    zone = Zone(settings.zone)
    async with contextlib.aclosing(zone):
        # Beside the loading of the model, which takes longer. Verifiers ask the first shard alone.
        if not settings.index:
            zone.start()
        with probing as probes, exposed(exposition, settings.metrics), tracing as spans:
            server = Server(settings.listen, _services(settings), tls=tls, probes=probes)
            # The port first: a model takes seconds to load, a port in use is known at once.
            server.bind()
            with among_peers(tls):
                await _serve_drafter(settings, server, zone, exposition, spans, probes)


async def _serve_drafter(
    settings: Settings,
    server: Server,
    zone: Zone,
    exposition: Exposition,
    tracing: Tracing,
    probes: Probes,
) -> None:
    threads = place(settings.cpus, settings.threads, resolve_device(settings.device))
    thread = model_thread()
    loop = asyncio.get_running_loop()
    runner, skips = await loop.run_in_executor(thread, _make_runner, settings)
    if settings.index:
        await _serve_shard(settings, server, runner, thread, exposition, probes)
        return
    sharded = ShardedStage(runner) if settings.shard_count > 1 else None
    context = KvContext(
        runner,
        settings.kv_context,
        share_memory=settings.kv_transport == "auto",
        others=sharded,
    )
    cores = computing_cores(runner.loaded.device)
    servicer = DrafterServicer(context, cores, tracing, zone)
    adaptive = await loop.run_in_executor(thread, _make_adaptive, settings, runner, skips, context)
    stage: Stage = sharded or (AdaptiveStage(runner) if adaptive else LocalStage(runner))
    if settings.slowdown > 1:
        stage = SlowStage(stage, settings.slowdown)
    watch = Watch()
    engine = DrafterEngine(
        runner,
        servicer.send,
        max_sequences=settings.max_sequences,
        stage=stage,
        parts=[part for part in (context, sharded, adaptive, watch) if part is not None],
        assist=make_assist(settings.ngram),
        early_stop=make_early_stop(settings.early_stop),
        compute_on=partial(compute_on, threads=threads),
    )
    if sharded is not None:
        sharded.heard = context.heard
    context.attach(engine.call, lambda: engine.counters.prefill_position_seconds)
    servicer.attach(engine, adaptive)
    exposition.read = DrafterMetrics(
        engine,
        watch,
        context.counters,
        adaptive.counters if adaptive else AdaptiveCounters(),
        sharded.counters if sharded else None,
    )
    running = asyncio.wrap_future(engine.start(thread))
    probes.watch(engine.trouble)
    drafter_pb2_grpc.add_DrafterServiceServicer_to_server(servicer, server.grpc)
    stop = orderly_stop()
    linking: asyncio.Task[None] | None = None
    if sharded is None:
        await _serve(server, serving=True)
    else:
        face = FirstShard(engine, sharded, settings.next_address)
        shard_pb2_grpc.add_ShardServiceServicer_to_server(face, server.grpc)
        servicer.close_to_verifiers("the drafter's shards are not there yet")
        await _serve(server, serving=False)
        link = ShardLink(
            settings.next_address,
            runner,
            passes=settings.shard_passes,
            patience=settings.shard_timeout,
            door=Door(server, servicer),
        )
        linking = asyncio.create_task(link.run(engine, sharded))
    log.info("serving on %s", settings.listen)
    await until_stopped(stop, running)
    log.info("stopping")
    if linking is not None:
        linking.cancel()
    await server.stop(settings.stop_grace)
    await asyncio.to_thread(engine.stop)


def _services(settings: Settings) -> list[str]:
    """Names of the gRPC services of this process."""
    shard = [SHARD_SERVICE] if settings.shard_count > 1 else []
    return shard if settings.index else [SERVICE, *shard]


async def _serve(server: Server, *, serving: bool) -> None:
    await server.start()
    await server.set_serving(serving)


async def _serve_shard(
    settings: Settings,
    server: Server,
    runner: ModelRunner,
    thread: ThreadPoolExecutor,
    exposition: Exposition,
    probes: Probes,
) -> None:
    """A shard behind the first."""
    share_memory = settings.kv_transport == "auto"
    engine = ShardEngine(runner, ShardContext(runner, share_memory=share_memory))
    exposition.read = partial(shard_metrics, engine)
    servicer = ShardServicer(engine, settings.next_address, settings.shard_timeout)
    running = asyncio.wrap_future(engine.start(thread))
    probes.watch(engine.trouble)
    shard_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server.grpc)
    stop = orderly_stop()
    await _serve(server, serving=True)
    log.info("shard %d serving on %s", settings.index, settings.listen)
    await until_stopped(stop, running)
    log.info("stopping")
    await server.stop(settings.stop_grace)
    await asyncio.to_thread(engine.stop)


if __name__ == "__main__":
    imported()
    sys.exit(run_service("drafter", Settings, serve, sys.argv[1:]))
