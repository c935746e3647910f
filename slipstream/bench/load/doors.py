"""The gateway's two front doors, as asynchronous clients that time and judge what they get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import httpx

from slipstream.bench.load.asks import Ask, Extras, grpc_request, http_body
from slipstream.bench.load.reading import Reading
from slipstream.core.errors import Overloaded
from slipstream.wire.proto import gateway_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel

clock = time.perf_counter
_REQUEST_SECONDS = 600.0
_PLAIN = Extras()
# Called after every chunk; what is true ends the call, as a client that goes away does.
Leave = Callable[[Reading], bool]


def stays(_: Reading) -> bool:
    """The client that reads to the end."""
    return False


class Door(Protocol):
    """Asks, and reads the answer to its end, until `leave` says so, or until it fails."""

    async def ask(
        self, ask: Ask, due: float | None = None, extras: Extras = _PLAIN, leave: Leave = stays
    ) -> Reading:
        """`due` on `clock`; None is now. Failures are in the reading, none is raised."""


def note_failure(reading: Reading, failure: Any) -> None:
    """Takes down why a gRPC call failed; `failure` is what grpc, or grpc.aio, raised."""
    error = error_of(failure)
    # Whoever has got tokens has been let in: what ends them is no refusal.
    reading.refused = isinstance(error, Overloaded) and not reading.arrivals
    reading.retry_after = error.retry_after
    reading.failure = f"{failure.code().name}: {error.message}"


@dataclass(frozen=True, slots=True)
class GrpcDoor:
    """GatewayService.Generate."""

    stub: Any

    async def ask(
        self, ask: Ask, due: float | None = None, extras: Extras = _PLAIN, leave: Leave = stays
    ) -> Reading:
        now = clock()
        reading = Reading(due=now if due is None else due, sent=now)
        call = self.stub.Generate(grpc_request(ask, extras), timeout=_REQUEST_SECONDS)
        try:
            async for message in call:
                reading.message(message, clock())
                if leave(reading):
                    reading.left = True
                    break
        except grpc.aio.AioRpcError as failure:
            note_failure(reading, failure)
        finally:
            call.cancel()
            reading.end = clock()
        return reading


@dataclass(frozen=True, slots=True)
class HttpDoor:
    """POST /v1/chat/completions with `stream`."""

    client: httpx.AsyncClient
    model: str

    async def ask(
        self, ask: Ask, due: float | None = None, extras: Extras = _PLAIN, leave: Leave = stays
    ) -> Reading:
        now = clock()
        reading = Reading(due=now if due is None else due, sent=now)
        body = http_body(ask, self.model, extras)
        try:
            await self._read(body, reading, leave)
        except httpx.HTTPError as failure:
            reading.failure = f"{type(failure).__name__}: {failure}"
        finally:
            reading.end = clock()
        return reading

    async def _read(self, body: dict[str, Any], reading: Reading, leave: Leave) -> None:
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                content = (await response.aread()).decode(errors="replace")
                reading.refuse(response.status_code, content, response.headers.get("retry-after"))
                return
            async for line in response.aiter_lines():
                reading.line(line, clock())
                if leave(reading):
                    reading.left = True
                    return


@asynccontextmanager
async def grpc_door(address: str) -> AsyncIterator[GrpcDoor]:
    async with channel(address) as link:
        yield GrpcDoor(gateway_pb2_grpc.GatewayServiceStub(link))


@asynccontextmanager
async def http_door(url: str, model: str) -> AsyncIterator[HttpDoor]:
    """As many connections as there are requests: a client's own queue is not the server's."""
    async with httpx.AsyncClient(
        base_url=url,
        timeout=httpx.Timeout(_REQUEST_SECONDS, connect=10.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        trust_env=False,
    ) as client:
        yield HttpDoor(client, model)


async def sleep_until(moment: float) -> None:
    """Until `moment` on `clock`; not at all where that is past."""
    await asyncio.sleep(max(0.0, moment - clock()))
