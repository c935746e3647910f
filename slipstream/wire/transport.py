"""gRPC servers and channels with the options that streaming of small messages needs.

Both seal what they send (see `seal`): a message that was damaged on its way ends its call.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from slipstream.wire.address import check_free, not_free
from slipstream.wire.lasting_server import LastingServer
from slipstream.wire.peer_name import PeerNameInterceptor
from slipstream.wire.probes import Probes
from slipstream.wire.renewed_channel import RenewedChannel
from slipstream.wire.sealed_channel import SealedChannel
from slipstream.wire.sealed_server import SealInterceptor
from slipstream.wire.tls import Tls, identity

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 15 s even on an idle stream. The server accepts pings that
    # often: its default is one in five minutes, after which it would cut the connection.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]
_SERVER_OPTIONS = [
    *_OPTIONS,
    # A port in use is an error, not a silent share of the traffic.
    ("grpc.so_reuseport", 0),
]
_CHANNEL_OPTIONS = [
    *_OPTIONS,
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    # The deadline of an attempt to connect, handshakes included: longer than a busy machine, or a
    # container that has used up its share of a core, holds one up.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def _no_lost_peer(record: logging.LogRecord) -> bool:
    """False for gRPC's own account of what the call reports: a message found its client gone (which
    is no error), or a damaged header."""
    return not record.getMessage().startswith(
        ("ExecuteBatchError raised in core by servicer", "Invalid encoding on")
    )


logging.getLogger("grpc._cython.cygrpc").addFilter(_no_lost_peer)


class Server:
    """A `grpc.aio` server with health checking and reflection.

    Args:
        address: `host:port`; port 0 takes a free one.
        services: full names of the services that will be added, for health and reflection.
        interceptors: passed to the server.
        tls: who calls must show a certificate of its CA that carries its name; None: anybody may
            call, in the clear.
        probes: are told whether it serves.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[str],
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        *,
        tls: Tls | None = None,
        probes: Probes | None = None,
    ) -> None:
        self.address = address
        self._tls, self._probes = tls, probes or Probes()
        named = [] if tls is None else [PeerNameInterceptor(tls.name)]
        every = [SealInterceptor(), *named, *interceptors]
        self.grpc = LastingServer(
            lambda: grpc.aio.server(options=_SERVER_OPTIONS, interceptors=every)
        )
        self._services = list(services)
        self._port = 0
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        reflection.enable_server_reflection(
            [*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self.grpc
        )

    def bind(self) -> int:
        """Takes the port, before anything slow. Returns it.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        if self._port == 0:
            check_free(self.address)
            try:
                if self._tls is None:
                    self._port = self.grpc.add_insecure_port(self.address)
                else:
                    credentials = self._tls.server_credentials()
                    self._port = self.grpc.add_secure_port(self.address, credentials)
            except RuntimeError as failure:
                raise not_free(self.address) from failure
        return self._port

    async def start(self) -> int:
        """Binds and serves; health stays NOT_SERVING until `set_serving`. Returns the port.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        port = self.bind()
        await self.set_serving(False)
        await self.grpc.start()
        self._probes.started()
        return port

    async def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.ServingStatus
        for name in ["", *self._services]:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)
        self._probes.ready = serving

    async def stop(self, grace: float) -> None:
        """Says NOT_SERVING, lets calls finish for `grace` seconds, then cuts them."""
        self._probes.ready = False
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace)


def channel(
    address: str, *, unread_bytes: int | None = None, connect_seconds: float | None = None
) -> grpc.aio.Channel:
    """A channel to a server of ours; not connected yet.

    Inside `tls.among_peers` it is a mutual TLS one, which shows a peer the certificate of the
    moment: calls that begin after files have changed get a connection of their own.

    Args:
        unread_bytes: of each stream, how much the peer may send ahead of what is read here. None
            lets gRPC choose by the link's speed: megabytes, which is best for large answers.
        connect_seconds: that an attempt to connect may take. None: two, which the ways between
            services hardly ever need.
    """
    options: list[tuple[str, int | str]] = [*_CHANNEL_OPTIONS]
    if connect_seconds is not None:
        # Of gRPC's options, this is also the deadline of an attempt.
        key = "grpc.min_reconnect_backoff_ms"
        options = [each for each in options if each[0] != key]
        options.append((key, int(1000 * connect_seconds)))
    if unread_bytes is not None:
        options += [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", unread_bytes)]
    tls = identity()
    if tls is None:
        return SealedChannel(grpc.aio.insecure_channel(address, options=options), address)
    options.append(("grpc.ssl_target_name_override", tls.name))

    def make() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)

    return SealedChannel(RenewedChannel(make, lambda: tls.number), address)


async def is_serving(address: str, service: str = "", timeout: float = 1.0) -> bool:
    """Whether the peer answers its health check with SERVING within `timeout` seconds."""
    async with channel(address) as link:
        stub = health_pb2_grpc.HealthStub(link)
        try:
            reply = await stub.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout
            )
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
