"""A server's side of the common name: a certificate of the same CA is not enough.

A CA may sign for a whole cluster, and every workload there could call verifiers else.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from slipstream.core.errors import NotAuthenticated
from slipstream.wire.status import abort

log = logging.getLogger(__name__)
_NAMES = "x509_subject_alternative_name"


class PeerNameInterceptor(grpc.aio.ServerInterceptor):
    """Ends calls of peers whose certificate does not carry the DNS name `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._refused: set[str] = set()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kinds = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        kind, made = kinds[handler.request_streaming, handler.response_streaming]
        guarded = self._guarded(getattr(handler, kind))
        return made(guarded, handler.request_deserializer, handler.response_serializer)

    def _guarded(self, behaviour: Any) -> Any:
        """Of the same sort: one that generates its responses, or one that is awaited."""

        async def generate(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            await self._check(context)
            async with contextlib.aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    yield message

        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            await self._check(context)
            return await behaviour(request, context)

        return generate if inspect.isasyncgenfunction(behaviour) else call

    async def _check(self, context: grpc.aio.ServicerContext) -> None:
        names = [name.decode() for name in context.auth_context().get(_NAMES, ())]
        if any(_covers(name, self._name) for name in names):
            return
        has = f"has {', '.join(names)}" if names else "has none"
        why = (
            f"the certificate of a caller must carry the DNS name {self._name}, and this one {has}"
        )
        # A caller tries again and again.
        if has not in self._refused:
            self._refused.add(has)
            log.warning("%s is refused: %s", context.peer(), why)
        await abort(context, NotAuthenticated(why))


def _covers(pattern: str, name: str) -> bool:
    """Whether a certificate's DNS name, maybe with `*` for its first label, is `name`'s."""
    if pattern.startswith("*."):
        return pattern[1:].lower() == name[len(name.partition(".")[0]) :].lower()
    return pattern.lower() == name.lower()
