"""A channel whose calls seal what they send, and take no answer without its seal.

Stubs are used as on any channel. An answer that is not what was sent ends its call: awaiting,
reading or iterating raises an AioRpcError of which `status.error_of` makes Corrupted. gRPC itself
has no way to say so: it logs what a deserializer raises, and hands out None.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.message import DecodeError

from slipstream.core.errors import Corrupted
from slipstream.wire.ending import WRITE_FAILED, Ending, Status, status_of
from slipstream.wire.seal import METADATA_KEY, Damaged, Seal, Unsealed, new_name
from slipstream.wire.status import rpc_error

_Serializer = Callable[[Any], bytes]
_Deserializer = Callable[[bytes], Any]
log = logging.getLogger(__name__)


class _Call:
    """A call in progress, of any of the four kinds; what is not here is the call's own."""

    def __init__(self, call: Any, method: _Method, requests: Seal, responses: Seal) -> None:
        self._call, self._method = call, method
        self._requests, self._responses = requests, responses
        self._ending = Ending(call) if method.streams else None
        self._damage: grpc.aio.AioRpcError | None = None
        self._answer: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        try:
            sealed = await self._call
        except grpc.aio.AioRpcError as failure:
            if not self._hides(failure):
                raise
            await self._raise_servers()
            raise
        if self._damage is not None:
            raise self._damage
        if self._answer is None:
            self._answer = self._open(sealed)
        return self._answer

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            async for sealed in self._call:
                yield self._open(sealed)
        except grpc.aio.AioRpcError as failure:
            if not self._hides(failure):
                raise
            await self._raise_servers()
        await self._check_end()

    async def read(self) -> Any:
        """The next response, or grpc.aio.EOF."""
        if self._damage is not None:
            raise self._damage
        try:
            sealed = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            if not self._hides(failure):
                raise
            await self._raise_servers()
            sealed = grpc.aio.EOF
        if sealed is not grpc.aio.EOF:
            return self._open(sealed)
        await self._check_end()
        return sealed

    async def write(self, request: Any) -> None:
        """Raises what ended the call, where it has ended."""
        if self._damage is not None:
            raise self._damage
        try:
            await self._call.write(self._requests.close(self._method.serialize(request)))
        except grpc.aio.AioRpcError as failure:
            if not self._hides(failure):
                raise
            await self._raise_servers()
            raise asyncio.InvalidStateError("the server has ended the call") from None
        except asyncio.InvalidStateError:
            if not self._call.done() or self._call.cancelled():
                raise
            status = await self._status()
            if status.code is grpc.StatusCode.OK:
                raise
            raise status.error() from None

    def _hides(self, failure: grpc.aio.AioRpcError) -> bool:
        """Whether it is what gRPC makes of a failed write, in the place of the server's status.

        Callers raise what it is not: an error and the frame of a function that raises its argument
        keep each other, and with them the channel, whose connection the next channel would share.
        """
        return self._ending is not None and failure.details() == WRITE_FAILED

    async def _raise_servers(self) -> None:
        """Raises what the server ended the call with, where it has not ended it in order."""
        status = await self._status()
        if status.code is not grpc.StatusCode.OK:
            raise status.error() from None

    async def _status(self) -> Status:
        """Waits for the end of the call."""
        return await (status_of(self._call) if self._ending is None else self._ending.status())

    async def code(self) -> grpc.StatusCode:
        return (await self._status()).code if self._damage is None else self._damage.code()

    async def details(self) -> Any:
        return (await self._status()).details if self._damage is None else self._damage.details()

    async def trailing_metadata(self) -> Any:
        if self._damage is None:
            return (await self._status()).trailers
        return self._damage.trailing_metadata()

    def _open(self, sealed: bytes | None) -> Any:
        """The response. Ends the call where it is not what was sent."""
        method = self._method
        if sealed is None:
            # An error whose status was damaged into success.
            self._end(Corrupted(f"{method} gave no answer"))
        try:
            return method.deserialize(self._responses.open(sealed))
        except Unsealed:
            self._end(
                Corrupted(
                    f"an answer of {method} came without its checksum: it was damaged on its way, "
                    "or the peer is no Slipstream of this version"
                )
            )
        except (Damaged, DecodeError) as damage:
            failure = Corrupted(f"an answer of {method} is not what was sent: {damage}")
            log.warning("%s; the call ends", failure.message)
            self._end(failure)

    async def _check_end(self) -> None:
        """Raises where messages were lost at the end of a stream."""
        if not set(self._responses.end) <= set((await self._status()).trailers):
            self._end(Corrupted(f"the end of the answer of {self._method} was lost"))

    def _end(self, failure: Corrupted) -> NoReturn:
        self._call.cancel()
        self._damage = rpc_error(failure)
        raise self._damage


class _Method:
    """A method of a service at the other end; calling it makes a call.

    Args:
        inner: the same of the plain channel, from bytes to bytes.
    """

    def __init__(
        self,
        inner: Any,
        peer: str,
        path: str,
        serialize: _Serializer | None,
        deserialize: _Deserializer | None,
        *,
        streams: bool,
    ) -> None:
        self._inner, self.streams = inner, streams
        self._peer, self._path = peer, path
        self.serialize: _Serializer = serialize or bytes
        self.deserialize: _Deserializer = deserialize or bytes

    def __str__(self) -> str:
        return f"{self._peer} to {self._path}"

    def __call__(self, request: Any = None, *, metadata: Any = None, **options: Any) -> Any:
        """Takes a request or, where requests are streamed, an iterator of them or nothing."""
        name = new_name()
        requests, responses = (Seal(name, self._path, to) for to in ("request", "response"))
        if not self.streams:
            request = requests.close(self.serialize(request))
        elif request is not None:
            request = self._sealed(request, requests)
        call = self._inner(request, metadata=(*(metadata or ()), (METADATA_KEY, name)), **options)
        return _Call(call, self, requests, responses)

    async def _sealed(
        self, requests: AsyncIterable[Any] | Iterable[Any], seal: Seal
    ) -> AsyncIterator[bytes]:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                yield seal.close(self.serialize(request))
        else:
            for request in requests:
                yield seal.close(self.serialize(request))


class SealedChannel(grpc.aio.Channel):
    """Seals what goes over `plain`, a channel to `peer`, and owns it."""

    def __init__(self, plain: grpc.aio.Channel, peer: str) -> None:
        self._plain, self._peer = plain, peer

    async def __aenter__(self) -> Self:
        await self._plain.__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._plain.__aexit__(*raised)

    async def close(self, grace: float | None = None) -> None:
        await self._plain.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._plain.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._plain.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._plain.channel_ready()

    def _method(
        self,
        kind: str,
        path: str,
        serialize: _Serializer | None,
        deserialize: _Deserializer | None,
        registered: bool | None,
    ) -> _Method:
        inner = getattr(self._plain, kind)(path, _registered_method=registered)
        streams = kind.startswith("stream")
        return _Method(inner, self._peer, path, serialize, deserialize, streams=streams)

    def unary_unary(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> _Method:
        return self._method(
            "unary_unary", method, request_serializer, response_deserializer, _registered_method
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> _Method:
        return self._method(
            "unary_stream", method, request_serializer, response_deserializer, _registered_method
        )

    def stream_unary(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> _Method:
        return self._method(
            "stream_unary", method, request_serializer, response_deserializer, _registered_method
        )

    def stream_stream(
        self,
        method: str,
        request_serializer: _Serializer | None = None,
        response_deserializer: _Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> _Method:
        return self._method(
            "stream_stream", method, request_serializer, response_deserializer, _registered_method
        )
