"""`python -m drafter_service`: exit code 0 after a clean stop, 2 on a configuration error."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from drafter_service.confidence import make_early_stop
from drafter_service.engine import DrafterEngine
from drafter_service.guesses import make_assist
from drafter_service.kv_context import KvContext
from drafter_service.servicer import DrafterServicer
from drafter_service.settings import Settings
from drafter_service.slow_stage import SlowStage
from drafter_service.stage import LocalStage, Stage
from slipstream.core.layer_plan import LayerPlan
from slipstream.engine.checkpoint import automatic_plan, load_model, read_config
from slipstream.engine.loop import model_thread
from slipstream.engine.placement import own_cores, place, resolve_device
from slipstream.engine.runner import ModelRunner
from slipstream.wire.process import run_service, until_stopped
from slipstream.wire.proto import drafter_pb2_grpc
from slipstream.wire.transport import Server

log = logging.getLogger(__name__)
SERVICE = "slipstream.v1.DrafterService"


def _make_runner(settings: Settings) -> ModelRunner:
    if settings.layer_plan == "auto":
        plan = automatic_plan(settings.model, read_config(settings.model))
    else:
        plan = LayerPlan.load(Path(settings.layer_plan))
    loaded = load_model(
        settings.model, dtype=settings.dtype, device=resolve_device(settings.device), plan=plan
    )
    runner = ModelRunner(loaded, int(settings.kv_cache_gib * 2**30))
    log.info(
        "%s, %s on %s, %.0f MB of weights, %d KV blocks",
        settings.model.name, plan.describe(), loaded.device, loaded.weight_bytes / 1e6,
        runner.pool.num_blocks,
    )  # fmt: skip
    return runner


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Binds, loads, serves until `stop`, ends cleanly."""
    place(settings.cpus, settings.threads, resolve_device(settings.device))
    server = Server(settings.listen, [SERVICE])
    server.bind()
    thread = model_thread()
    loop = asyncio.get_running_loop()
    runner = await loop.run_in_executor(thread, _make_runner, settings)
    context = KvContext(runner, settings.kv_context)
    cores = own_cores() if runner.loaded.device.type == "cpu" else ()
    servicer = DrafterServicer(context, cores)
    stage: Stage = LocalStage(runner)
    if settings.slowdown > 1:
        stage = SlowStage(stage, settings.slowdown)
    engine = DrafterEngine(
        runner,
        servicer.send,
        max_sequences=settings.max_sequences,
        stage=stage,
        parts=[context],
        assist=make_assist(settings.ngram),
        early_stop=make_early_stop(settings.early_stop),
    )
    context.attach(engine.call, lambda: engine.counters.prefill_position_seconds)
    servicer.attach(engine)
    running = asyncio.wrap_future(engine.start(thread))
    drafter_pb2_grpc.add_DrafterServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    await server.set_serving(True)
    log.info("serving on %s", settings.listen)
    await until_stopped(stop, running)
    log.info("stopping")
    await server.stop(settings.stop_grace)
    await asyncio.to_thread(engine.stop)


if __name__ == "__main__":
    sys.exit(run_service("drafter", Settings, serve, sys.argv[1:]))
