"""The gateway's two front doors as Locust needs them: blocking calls that gevent makes wait aside.

What is sent and how it is read is shared with the asynchronous clients of `slipstream bench serve`.
"""

from __future__ import annotations

from typing import Any, Protocol

import grpc
import requests

from slipstream.bench.load.asks import Ask, Extras, grpc_request, http_body
from slipstream.bench.load.doors import Leave, clock, note_failure
from slipstream.bench.load.reading import Reading
from slipstream.wire.proto import gateway_pb2_grpc

_CONNECT_SECONDS, _SILENT_SECONDS, _REQUEST_SECONDS = 10.0, 300.0, 600.0


class Client(Protocol):
    """Asks and reads to the end, until `leave` says so, or until it fails; raises nothing."""

    protocol: str

    def ask(self, ask: Ask, due: float, extras: Extras, leave: Leave) -> Reading: ...


class HttpClient:
    """Server-sent events of POST /v1/chat/completions; of any OpenAI-compatible server.

    Locust's bundled OpenAI user reads whole bodies, and so knows no time to first token.
    """

    protocol = "HTTP"

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url.rstrip('/')}/v1/chat/completions"
        self._model = model
        self._session = requests.Session()
        self._session.trust_env = False

    def ask(self, ask: Ask, due: float, extras: Extras, leave: Leave) -> Reading:
        reading = Reading(due=due, sent=clock())
        try:
            self._read(http_body(ask, self._model, extras), reading, leave)
        except requests.RequestException as failure:
            reading.failure = f"{type(failure).__name__}: {failure}"
        finally:
            reading.end = clock()
        return reading

    def _read(self, body: dict[str, Any], reading: Reading, leave: Leave) -> None:
        timeout = (_CONNECT_SECONDS, _SILENT_SECONDS)
        with self._session.post(self._url, json=body, stream=True, timeout=timeout) as response:
            if response.status_code >= 400:
                header = response.headers.get("retry-after")
                reading.refuse(response.status_code, response.text, header)
                return
            for line in _lines(response):
                reading.line(line, clock())
                if leave(reading):
                    reading.left = True
                    return


def _lines(response: requests.Response):
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

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stub = gateway_pb2_grpc.GatewayServiceStub(self._channel)

    def ask(self, ask: Ask, due: float, extras: Extras, leave: Leave) -> Reading:
        reading = Reading(due=due, sent=clock())
        call = self._stub.Generate(grpc_request(ask, extras), timeout=_REQUEST_SECONDS)
        try:
            for message in call:
                reading.message(message, clock())
                if leave(reading):
                    reading.left = True
                    break
        except grpc.RpcError as failure:
            note_failure(reading, failure)
        finally:
            call.cancel()
            reading.end = clock()
        return reading
