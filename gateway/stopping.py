"""How a gateway stops: what runs goes on to its end, nothing new begins, and nobody is cut off."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from gateway.admission import Admission
from gateway.http.listener import Server as HttpServer
from slipstream.wire.transport import Server

# Once no request has a place any more, for what is on its way to clients, and for calls that have
# none: they are short, but for those that watch health.
_LAST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Stop:
    """Closes both doors, so that one grace period is enough for both.

    Until the last request that was let in has its answer, or the grace is over, HTTP stays open:
    probes find a process that lives and is not ready, and whoever comes late gets 503 and when to
    come back, not a connection that is refused. gRPC has a way of its own to lead clients
    elsewhere: it tells them (GOAWAY), and takes no new connections.

    Attributes:
        http, serving: the server, and the task in which it serves.
        grace: seconds for what runs.
    """

    http: HttpServer
    serving: asyncio.Task[None]
    grpc: Server
    admission: Admission
    grace: float

    def begin(self) -> None:
        """Nothing new is let in."""
        self.admission.close()
        self.http.keep_none_alive()

    async def drain(self) -> None:
        """Returns when nothing is left."""
        # It may not have come to serve, so that nobody began.
        self.begin()
        give_up = time.monotonic() + self.grace
        closing = asyncio.create_task(self.grpc.stop(self.grace))
        emptied = asyncio.create_task(self.admission.empty())
        waits = {self.serving, emptied}
        await asyncio.wait(waits, timeout=self.grace, return_when=asyncio.FIRST_COMPLETED)
        emptied.cancel()
        left = max(_LAST_SECONDS, give_up - time.monotonic())
        running = self.admission.running > 0
        await asyncio.gather(
            self.http.end(self.serving, 0.0 if running else left),
            self.grpc.stop(left if running else _LAST_SECONDS),
            closing,
        )
