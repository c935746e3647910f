"""API keys at the HTTP door."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.http.errors import error_response
from gateway.keys import KeyRing
from slipstream.core.errors import NotAuthenticated

# Probes carry no key.
_OPEN = frozenset({"/health", "/ready"})


class KeyMiddleware:
    """Lets a request through that carries a known key, and the probes."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            try:
                self._keys.check(Headers(scope=scope).get("authorization"))
            except NotAuthenticated as failure:
                await error_response(failure)(scope, receive, send)
                return
        await self._app(scope, receive, send)
