"""`python -m verifier_service`: exit code 0 after a clean stop, 2 on a configuration error."""

from __future__ import annotations

from slipstream.wire.starting import imported, starting, with_engine

if __name__ == "__main__":
    # Before the imports that take seconds.
    starting()
    with_engine("verifier")

import asyncio
import contextlib
import logging
import sys
import uuid
from functools import partial

from slipstream.core import stages
from slipstream.core.draft import Command
from slipstream.core.layer_plan import LayerPlan
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.zone import Zone
from slipstream.engine.checkpoint import load_model
from slipstream.engine.exactness import choose_shapes, step_seconds
from slipstream.engine.loop import model_thread
from slipstream.engine.placement import compute_on, computing_cores, place, resolve_device
from slipstream.engine.runner import ModelRunner
from slipstream.wire.host import host_id
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.probes import Probes, probed
from slipstream.wire.process import run_service, until_stopped
from slipstream.wire.proto import drafter_pb2, kv_pb2_grpc, verifier_pb2_grpc
from slipstream.wire.starting import orderly_stop
from slipstream.wire.telemetry.metrics import Exposition, exposed
from slipstream.wire.telemetry.tracing import Tracing, tracing_to
from slipstream.wire.tls import among_peers
from slipstream.wire.transport import Server
from verifier_service.admission import Bounds
from verifier_service.departure import Departure
from verifier_service.drafter_choice import DrafterChoice, Drafters
from verifier_service.drafter_link import DrafterLink
from verifier_service.engine import VerifierEngine
from verifier_service.kv_holder import KvHolder
from verifier_service.kv_import import KvImports
from verifier_service.kv_servicer import KvServicer
from verifier_service.layouts import Drafter
from verifier_service.metrics import VerifierMetrics
from verifier_service.placement import Placement
from verifier_service.plan import Limits
from verifier_service.rounds import Rounds
from verifier_service.servicer import Identity, VerifierServicer
from verifier_service.settings import Settings, advertised
from verifier_service.speculation import Speculation, SpeculationSettings
from verifier_service.telemetry import Telemetry

log = logging.getLogger(__name__)
SERVICES = ["slipstream.v1.VerifierService", "slipstream.v1.KvService"]
# What has ended by then still has to reach whoever asked.
_LAST_WORDS_SECONDS = 0.5
# A row must not depend on how many rows there are, so nothing else serves as int8.
_PLANS = {
    "native": LayerPlan(),
    "int8": LayerPlan(precision="w8a8", head_precision="w8a8"),
}
# Row counts whose step time is probed when the model is loaded.
PROBED_ROWS = (1, 2, 4, 6, 8, 12, 16, 32, 64, 128, 256)


def _make_runner(settings: Settings) -> tuple[ModelRunner, Limits, dict[int, float]]:
    """The model, ready to run, the bounds of its steps, and the seconds of a step by rows."""
    stages.tell("loading the model")
    loaded = load_model(
        settings.model,
        dtype=settings.dtype,
        device=resolve_device(settings.device),
        plan=_PLANS[settings.precision],
    )
    runner = ModelRunner(loaded, int(settings.kv_cache_gib * 2**30))
    stages.tell("checking up to how many rows it computes exactly, and how fast")
    exactness, shapes = choose_shapes(runner, settings.exactness)
    log.info(
        "%s, %s %s on %s, %.0f MB of weights, %d KV blocks, exactness %s with %s",
        settings.model.name, loaded.dtype, settings.precision, loaded.device,
        loaded.weight_bytes / 1e6,
        runner.pool.num_blocks, exactness, shapes,
    )  # fmt: skip
    # A small context window has no room for the wide ones.
    probed = [rows for rows in PROBED_ROWS if rows <= max(1, loaded.context_length // 2)]
    seconds = step_seconds(runner, probed)
    # What was computed to get here is no request's.
    runner.model_seconds = 0.0
    limits = Limits.of(
        strict=exactness == "strict",
        exact_rows=shapes.max_rows,
        step_rows=settings.step_rows,
        prefill_chunk=settings.prefill_chunk,
    )
    return runner, limits, seconds


async def serve(settings: Settings) -> None:
    """Binds, loads, serves until it is told to stop, ends cleanly."""
    exposition = Exposition("verifier", settings.model_name)
    tracing, tls = tracing_to("verifier", settings.otlp_endpoint), settings.tls()
    probing = probed(settings.health, settings.hung_step)
    zone = Zone(settings.zone)
    async with contextlib.aclosing(zone):
        # Beside the loading of the model, which takes longer.
        zone.start()
        with probing as probes, exposed(exposition, settings.metrics), tracing as spans:
            server = Server(settings.listen, SERVICES, tls=tls, probes=probes)
            # The port first: a model takes seconds to load, a port in use is known at once.
            server.bind()
            with among_peers(tls):
                await _serve(settings, server, zone, exposition, spans, probes)


async def _serve(
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
    runner, limits, step_seconds = await loop.run_in_executor(thread, _make_runner, settings)
    mailbox = Mailbox(loop)
    loaded = runner.loaded
    incarnation = uuid.uuid4().hex
    address = advertised(settings) if settings.kv_leases else ""
    telemetry = Telemetry()
    hello = drafter_pb2.Hello(
        model_fingerprint=loaded.fingerprint,
        vocab_size=loaded.config.vocab_size,
        incarnation=incarnation,
        kv_address=address,
    )
    rounds = Rounds(telemetry, tracing, settings.trace_rounds)
    link = _make_link(settings, zone, hello, mailbox, rounds)

    def send(connection: int, commands: list[Command]) -> None:
        assert link is not None, "only a link announces a drafter"
        link.send(connection, commands)

    own = Drafter(host_id(), computing_cores(loaded.device))
    length = None if settings.draft_length == "auto" else settings.draft_length
    window = None if settings.window == "auto" else settings.window
    # A fixed length never waits, so there is nothing to take turns with.
    wanted = settings.placement if length is None else "separate"
    placement = Placement(wanted, own, partial(compute_on, threads=threads))
    speculation = Speculation(
        send,
        SpeculationSettings(window, length, settings.ngram, limits.decode_rows),
        step_seconds,
        placement,
        telemetry=telemetry,
    )
    engine = VerifierEngine(
        runner,
        speculation,
        limits=limits,
        max_running=settings.max_sequences,
        bounds=Bounds(settings.max_queue, settings.max_wait),
        stretch=settings.prefill_stretch,
        kv=KvHolder(runner, most=settings.kv_leases, share=settings.kv_lease_share),
    )
    exposition.read = VerifierMetrics(engine, link)
    running = asyncio.wrap_future(engine.start(thread))
    probes.watch(engine.trouble)
    exactness = "strict" if limits.strict else "fast"
    identity = Identity(
        exposition.model,
        settings.precision,
        exactness,
        settings.speculative,
        incarnation,
        address,
        zone,
    )
    departure = Departure(lambda: engine.kv.num_pulls)
    imports = KvImports(engine, address, incarnation)
    servicer = VerifierServicer(
        engine, identity, link, mailbox, settings.send_timeout, tracing, departure, imports
    )
    verifier_pb2_grpc.add_VerifierServiceServicer_to_server(servicer, server.grpc)
    kv_servicer = KvServicer(engine, address, incarnation)
    kv_pb2_grpc.add_KvServiceServicer_to_server(kv_servicer, server.grpc)
    stop = orderly_stop()
    await server.start()
    linking = None if link is None else asyncio.create_task(link.run(engine))
    await server.set_serving(True)
    log.info("serving on %s", settings.listen)
    await until_stopped(stop, running)
    log.info("stopping; %d generations may take %g s", engine.num_alive, settings.stop_grace)
    await _leave(server, departure, settings.stop_grace)
    await imports.close()
    if linking is not None:
        linking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await linking
    await asyncio.to_thread(engine.stop)


def _make_link(
    settings: Settings, zone: Zone, hello: drafter_pb2.Hello, mailbox: Mailbox, rounds: Rounds
) -> DrafterLink | None:
    if settings.drafter == "off":
        return None
    endpoints = Endpoints(settings.drafter, "--drafter", "drafter")
    drafters = Drafters(endpoints, hello.model_fingerprint, zone, hello.incarnation)
    return DrafterLink(DrafterChoice(drafters), hello, mailbox, rounds)


async def _leave(server: Server, departure: Departure, grace: float) -> None:
    """Lets generations end or move, then ends all calls."""
    departure.begin(grace)
    await server.set_serving(False)
    await departure.over()
    departure.cut()
    await server.stop(_LAST_WORDS_SECONDS)


if __name__ == "__main__":
    imported()
    sys.exit(run_service("verifier", Settings, serve, sys.argv[1:]))
