"""Every HTTP request has a name: its client's, or a new one."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.request_id import request_name
from slipstream.wire.telemetry import logs, tracing

HEADER = "X-Request-Id"


class RequestIds:
    """Takes `X-Request-Id`, or makes one where none came that is short and plain, and returns it.

    The task that serves the request finds it in `logs.request_id`, and the span that the client
    may have named in `tracing.incoming`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name = request_name(headers.get(HEADER, ""))
        logs.request_id.set(name)
        tracing.incoming.set(tracing.trace_headers(headers.items()))

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        await self._app(scope, receive, named)
