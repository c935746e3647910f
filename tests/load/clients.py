"""The gateway's two front doors as Locust needs them: blocking calls that gevent makes wait aside.

What is sent and how it is read is shared with the asynchronous clients of `slipstream bench serve`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
import grpc
import requests

from slipstream.bench.load.asks import Ask, Extras, grpc_request, http_body
from slipstream.bench.load.doors import clock, note_failure
from slipstream.bench.load.reading import Reading
from slipstream.wire.proto import gateway_pb2_grpc

_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stay:
    """How long a client stays that goes away on its own.

    Attributes:
        seconds: after which it leaves, whatever has come: with 0 as soon as it has asked.
        chunks: with which it leaves, if there is more to come.
    """

    seconds: float = math.inf
    chunks: float = math.inf

    def enough(self, reading: Reading) -> bool:
        # Whoever has all of it has not gone away.
        return len(reading.arrivals) >= self.chunks and not reading.finish_reason


class Client(Protocol):
    """Asks and reads to the end, until it leaves, or until it fails; raises nothing.

    An answer that has not ended after `limit` seconds is one that did not come.
    """

    protocol: str

    def ask(self, ask: Ask, due: float, extras: Extras, stay: Stay) -> Reading: ...


@contextmanager
def _within(reading: Reading, stay: Stay, limit: float) -> Iterator[None]:
    """Ends the block, wherever it waits, when the client leaves or has waited for long enough."""
    with gevent.Timeout(min(stay.seconds, limit)) as timeout:
        try:
            yield
        except gevent.Timeout as over:
            if over is not timeout:
                raise
            if stay.seconds < limit:
                reading.left = True
            else:
                reading.failure = f"no end within {limit:g} s"
        finally:
            reading.end = clock()


class HttpClient:
    """Server-sent events of POST /v1/chat/completions; of any OpenAI-compatible server.

    Locust's bundled OpenAI user reads whole bodies, and so knows no time to first token.
    """

    protocol = "HTTP"

    def __init__(self, url: str, model: str, limit: float) -> None:
        self._url = f"{url.rstrip('/')}/v1/chat/completions"
        self._model = model
        self._limit = limit
        self._session = requests.Session()
        self._session.trust_env = False

    def ask(self, ask: Ask, due: float, extras: Extras, stay: Stay) -> Reading:
        reading = Reading(due=due, sent=clock())
        with _within(reading, stay, self._limit):
            try:
                self._read(http_body(ask, self._model, extras), reading, stay)
            except requests.RequestException as failure:
                reading.failure = f"{type(failure).__name__}: {failure}"
        return reading

    def _read(self, body: dict[str, Any], reading: Reading, stay: Stay) -> None:
        timeout = (_CONNECT_SECONDS, self._limit)
        with self._session.post(self._url, json=body, stream=True, timeout=timeout) as response:
            if response.status_code >= 400:
                header = response.headers.get("retry-after")
                reading.refuse(response.status_code, response.text, header)
                return
            for line in _lines(response):
                reading.line(line, clock())
                if stay.enough(reading):
                    reading.left = True
                    return


def _lines(response: requests.Response) -> Iterator[str]:
    """The lines of a body as they arrive; `iter_lines` would wait for its buffer to fill."""
    rest = b""
    for piece in response.iter_content(chunk_size=None):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode()
    if rest:
        yield rest.decode()


class GrpcClient:
    """GatewayService.Generate. `grpc.experimental.gevent` must have been set up before."""

    protocol = "gRPC"

    def __init__(self, address: str, limit: float) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)
        self._limit = limit

    def ask(self, ask: Ask, due: float, extras: Extras, stay: Stay) -> Reading:
        reading = Reading(due=due, sent=clock())
        # The limit is kept below; the call's own deadline is there in case it is not.
        call = self._stub.Generate(grpc_request(ask, extras), timeout=2 * self._limit)
        try:
            with _within(reading, stay, self._limit):
                self._read(call, reading, stay)
        finally:
            call.cancel()
        return reading

    def _read(self, call: Any, reading: Reading, stay: Stay) -> None:
        try:
            for message in call:
                reading.message(message, clock())
                if stay.enough(reading):
                    reading.left = True
                    return
        except grpc.RpcError as failure:
            note_failure(reading, failure)
