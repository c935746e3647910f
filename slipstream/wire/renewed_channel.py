"""A channel that makes its connection anew where its credentials are not those of today.

gRPC fixes the credentials of a channel when it is made; one that lives for weeks would show a peer
a certificate that has long expired as soon as its connection breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import grpc


class _Made:
    """One plain channel, and the calls that run on it."""

    def __init__(self, channel: grpc.aio.Channel, number: int) -> None:
        self.channel, self.number = channel, number
        self.calls = 0
        self.methods: dict[tuple[str, str], Any] = {}


class RenewedChannel(grpc.aio.Channel):
    """Hands calls to the newest of the channels that `make` made. Lives on one event loop.

    Running calls stay where they are: a connection is not asked for a certificate twice. What is
    replaced is closed as its last call has ended.

    Args:
        make: a new channel, with the credentials of now.
        number: of the credentials of now; another one once they have changed.
    """

    def __init__(self, make: Callable[[], grpc.aio.Channel], number: Callable[[], int]) -> None:
        self._make, self._number = make, number
        self._now = self._made()
        self._replaced: set[_Made] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def _made(self) -> _Made:
        # The number first: content that changes in between is then noticed once more.
        number = self._number()
        return _Made(self._make(), number)

    def _current(self) -> _Made:
        if self._now.number != self._number():
            old, self._now = self._now, self._made()
            self._replaced.add(old)
            self._close_unused(old)
        return self._now

    def _close_unused(self, made: _Made) -> None:
        if not made.calls and made in self._replaced:
            self._replaced.discard(made)
            task = asyncio.ensure_future(made.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _call(
        self, kind: str, path: str, how: dict[str, Any], request: Any, options: dict[str, Any]
    ) -> Any:
        made = self._current()
        method = made.methods.get((kind, path))
        if method is None:
            method = made.methods[kind, path] = getattr(made.channel, kind)(path, **how)
        call = method(*request, **options)
        made.calls += 1

        def ended(_: object) -> None:
            made.calls -= 1
            self._close_unused(made)

        call.add_done_callback(ended)
        return call

    def _method(self, kind: str, path: str, how: dict[str, Any]) -> Callable[..., Any]:
        def call(*request: Any, **options: Any) -> Any:
            return self._call(kind, path, how, request, options)

        return call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        all_made = (self._now, *self._replaced)
        self._replaced.clear()
        await asyncio.gather(*(made.channel.close(grace) for made in all_made), *self._closing)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._current().channel.channel_ready()

    def unary_unary(self, method: str, **how: Any) -> Callable[..., Any]:
        return self._method("unary_unary", method, how)

    def unary_stream(self, method: str, **how: Any) -> Callable[..., Any]:
        return self._method("unary_stream", method, how)

    def stream_unary(self, method: str, **how: Any) -> Callable[..., Any]:
        return self._method("stream_unary", method, how)

    def stream_stream(self, method: str, **how: Any) -> Callable[..., Any]:
        return self._method("stream_stream", method, how)
