"""The process: both front doors and the links to verifiers in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import uvicorn

from gateway.admission import Admission
from gateway.generation import GenerationService
from gateway.grpc_service import SERVICE, GatewayServicer, KeyInterceptor
from gateway.http.app import build
from gateway.http.listener import Protocol, listen
from gateway.http.listener import Server as HttpServer
from gateway.kept import Kept, keeping
from gateway.keys import KeyRing
from gateway.metrics import Metrics
from gateway.parts import Parts
from gateway.settings import Settings
from gateway.stopping import Stop
from gateway.tokenizer import Tokenizer
from gateway.verifiers.pool import VerifierPool
from slipstream.core.errors import ConfigurationError
from slipstream.discovery.zone import Zone
from slipstream.store import Store
from slipstream.wire.proto import gateway_pb2_grpc
from slipstream.wire.starting import orderly_stop
from slipstream.wire.telemetry.tracing import tracing_to
from slipstream.wire.tls import among_peers
from slipstream.wire.transport import Server

_START_SECONDS = 10.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A started gateway: its ports, the task that ends if HTTP does, what it keeps, and the
    requests that it has."""

    http_port: int
    grpc_port: int
    serving: asyncio.Task[None]
    kept: Kept
    admission: Admission


@contextlib.asynccontextmanager
async def serving(settings: Settings, store: Store | None = None) -> AsyncIterator[Running]:
    """A gateway that serves while the block runs, and stops cleanly after it.

    Args:
        store: keeps sessions and generations, closed by its owner; None: the one that the settings
            name.

    Raises:
        ConfigurationError: a port is taken, the key file or the model folder is unusable.
    """
    tokenizer = Tokenizer(settings.model)
    keys = None if settings.api_keys is None else KeyRing(settings.api_keys)
    pool = VerifierPool(settings.verifiers, settings.limits, zone=Zone(settings.zone))
    metrics, loop = Metrics(settings.model_name), asyncio.get_running_loop()
    metrics.tasks = lambda: len(asyncio.all_tasks(loop))
    admission = Admission(settings.max_requests, settings.max_requests_per_key, metrics)
    host, port = settings.http_address
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(among_peers(settings.tls()))
        service = GenerationService(
            settings.model_name,
            tokenizer,
            pool,
            metrics,
            isolate_caches=settings.isolate_caches,
            tracing=stack.enter_context(tracing_to("gateway", settings.otlp_endpoint)),
        )
        stack.push_async_callback(pool.close)
        # Behind the doors: what they cut short is let go of, and written.
        kept = await stack.enter_async_context(keeping(settings, service, store))
        parts = Parts(
            service, kept, keys, admission, settings.max_body_bytes, settings.send_timeout
        )
        listener = stack.enter_context(
            contextlib.closing(listen(host, port, 2 * settings.send_timeout))
        )
        grpc_server = Server(
            settings.grpc, [SERVICE], [] if keys is None else [KeyInterceptor(keys)]
        )
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(
            GatewayServicer(parts), grpc_server.grpc
        )
        grpc_port = await grpc_server.start()
        stack.push_async_callback(grpc_server.stop, settings.stop_grace)
        pool.start()
        kept.runs.start()
        config = uvicorn.Config(
            build(parts),
            http=Protocol,
            log_config=None,
            access_log=False,
            lifespan="off",
        )
        http_server = HttpServer(config)
        task = asyncio.create_task(http_server.serve(sockets=[listener]), name="http")
        stop = Stop(http_server, task, grpc_server, admission, settings.stop_grace)
        stack.push_async_callback(stop.drain)
        await _started(http_server, task)
        kept.background.start()
        # Before clients here get their grace: others may go on with them meanwhile.
        stack.push_async_callback(kept.background.close)
        # First of all.
        stack.callback(stop.begin)
        await grpc_server.set_serving(True)
        if keys is None:
            log.info("no --api-keys: open to the users of this machine only")
        yield Running(listener.getsockname()[1], grpc_port, task, kept, admission)


async def _started(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while not server.started:
            if task.done():
                raise ConfigurationError("the HTTP server did not start")
            await asyncio.sleep(0.01)


async def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, which end the process at once until then.

    Raises:
        ConfigurationError: as `serving` does.
    """
    async with serving(settings) as running:
        stop = orderly_stop()
        log.info(
            "serving %s: HTTP on port %d, gRPC on port %d",
            settings.model_name,
            running.http_port,
            running.grpc_port,
        )
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({waiting, running.serving}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        held, grace = running.admission.running, settings.stop_grace
        log.info("stopping; %d requests may take %g s", held, grace)
