"""Who may come in over HTTP: API keys, and room for one more request."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.admission import Admission
from gateway.http.errors import error_response
from gateway.http.listener import hang_up
from gateway.keys import KeyRing
from slipstream.core.errors import SlipstreamError

# Probes carry no key.
_OPEN = frozenset({"/health", "/ready"})
# For a body that nobody reads.
_BODY_SECONDS = 2.0
_BOUNDED = frozenset({"/v1/chat/completions", "/v1/completions"})
# The rest of a stream is a request like the first part.
_RESUMED = re.compile(r"/v1/generations/[^/]+/events")


class Door:
    """Asks for a known key where `keys` are given, and for a place before a body is read.

    A request that is let in finds its `tenant` and when it `arrived` (`time.monotonic()`) in its
    state. Its place is free again when its answer is sent, or nobody wants it any more.

    While the gateway stops, each answer is the last one of its connection.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None, admission: Admission) -> None:
        self._app = app
        self._keys = keys
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and self._admission.stopping:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            place = self._enter(scope)
        except SlipstreamError as failure:
            if self._admission.stopping:
                await _take_body(scope, receive)
            await error_response(failure)(scope, receive, sending)
            return
        with place:
            try:
                await self._app(scope, receive, sending)
            except asyncio.CancelledError:
                # The gateway stops, and its grace is over: no failure of the request's.
                await hang_up(scope)

    def _enter(self, scope: Scope) -> contextlib.AbstractContextManager[None]:
        tenant = ""
        if self._keys is not None and scope["path"] not in _OPEN:
            tenant = self._keys.check(Headers(scope=scope).get("authorization"))
        scope.setdefault("state", {}).update(tenant=tenant, arrived=time.monotonic())
        bounded = scope["method"] == "POST" and scope["path"] in _BOUNDED
        if bounded or _RESUMED.fullmatch(scope["path"]):
            return self._admission.enter(tenant)
        return contextlib.nullcontext()


async def _take_body(scope: Scope, receive: Receive) -> None:
    """Reads past what the client still sends: closing on it would reset the connection, and the
    client might never see its answer."""
    if "expect" in Headers(scope=scope):
        # It sends nothing before it is asked to.
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BODY_SECONDS):
            while (await receive()).get("more_body", False):
                pass
