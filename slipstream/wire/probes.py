"""What an orchestrator asks a model service: is it started, is it ready, is it alive.

A gRPC health server beside the service's own, on threads of its own: it answers while the model
loads, and when the event loop does not. It is plain, as probes speak no TLS, and tells nothing but
these states.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from slipstream.wire.address import check_free, not_free

log = logging.getLogger(__name__)
_THREADS = 2
_BEAT_SECONDS = 1.0
# Nothing on the event loop takes a second, and what keeps the interpreter's lock to itself while a
# model loads keeps it from answering probes, too: this is generous, and still soon for an operator.
HUNG_LOOP_SECONDS = 20.0
Status = health_pb2.HealthCheckResponse.ServingStatus


class Probes:
    """The states. Set on the event loop, read on any thread.

    Args:
        hung_step: seconds after which a step of the engine counts as hung.
        clock: seconds.

    Attributes:
        ready: whether the main server is serving.
    """

    def __init__(
        self, hung_step: float = math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.ready = False
        self._hung_step = hung_step
        self._clock = clock
        self._started = False
        self._beat_at = clock()
        self._trouble: Callable[[float], str] = lambda _: ""
        self._said = ""
        self._lock = threading.Lock()

    def started(self) -> None:
        """The model is loaded and the main server up. For good."""
        self._started = True

    def watch(self, trouble: Callable[[float], str]) -> None:
        """From now on also the engine has to be well.

        Args:
            trouble: says what is wrong with it; takes the seconds that a step may take.
        """
        self._trouble = trouble

    def beat(self) -> None:
        """The event loop turns."""
        self._beat_at = self._clock()

    def trouble(self) -> str:
        """Why the process should be started anew; empty while it is well."""
        silent = self._clock() - self._beat_at
        if silent > HUNG_LOOP_SECONDS:
            return f"the event loop has hung for {silent:.0f} s"
        return self._trouble(self._hung_step)

    def status(self, service: str) -> int | None:
        """Of `service`; None: there is none of that name."""
        match service:
            case "" | "readiness":
                well = self.ready
            case "startup":
                well = self._started
            case "liveness":
                well = self._alive()
            case _:
                return None
        return int(Status.SERVING if well else Status.NOT_SERVING)

    def _alive(self) -> bool:
        trouble = self.trouble()
        with self._lock:
            # The seconds in it grow; that there is something is said once.
            if bool(trouble) != bool(self._said):
                log.error("not alive: %s", trouble) if trouble else log.info("alive again")
            self._said = trouble
        return not trouble


@contextlib.contextmanager
def probed(address: str, hung_step: float) -> Iterator[Probes]:
    """Answers probes while the block runs; inside a running event loop.

    Args:
        address: host:port, where port 0 takes a free one; "off" answers none.
        hung_step: as `Probes` has it.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    probes = Probes(hung_step)
    if address == "off":
        yield probes
        return
    check_free(address, "--health")
    server = grpc.server(
        ThreadPoolExecutor(_THREADS, thread_name_prefix="probes"),
        options=[("grpc.so_reuseport", 0)],
    )
    health_pb2_grpc.add_HealthServicer_to_server(_Health(probes), server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as failure:
        raise not_free(address, "--health") from failure
    server.start()
    beating = asyncio.create_task(_beat(probes), name="probes-beat")
    try:
        yield probes
    finally:
        beating.cancel()
        server.stop(0).wait(_BEAT_SECONDS)


async def _beat(probes: Probes) -> None:
    while True:
        probes.beat()
        await asyncio.sleep(_BEAT_SECONDS)


class _Health(health_pb2_grpc.HealthServicer):
    """`Watch` is not there, as the protocol allows: probes ask."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 gRPC's name
        status = self._probes.status(request.service)
        if status is None:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service {request.service!r}: there are readiness, liveness and startup",
            )
        return health_pb2.HealthCheckResponse(status=status)
