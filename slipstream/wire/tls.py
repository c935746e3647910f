"""Mutual TLS between the services: who we are, whom we believe, and the files that say so.

With it, servers and channels talk only to peers whose certificate the CA has signed and that has
the common name: peers are dialled by the addresses of pods, which no certificate can list.

Which identity channels use is a fact of the process, as its log format is, and not an argument:
they are made in a dozen places, many calls below the settings, where one that forgot to hand it on
would talk in the clear. `among_peers` sets it for as long as a service runs. Servers, of which a
process may have several with different doors (the gateway's are for clients), are given theirs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings

from slipstream.core.errors import ConfigurationError
from slipstream.wire.tls_files import TlsFiles, Version

log = logging.getLogger(__name__)


class Tls:
    """Our identity among the services, read again when its files change. For any thread.

    A change that cannot be used (a file is half written, a key is not its certificate's) leaves
    what was there before, is logged, and is looked at again with the next change.

    Raises:
        ConfigurationError: the files cannot be used; see `TlsFiles.read`.
    """

    def __init__(self, files: TlsFiles) -> None:
        self.name = files.name
        self._files = files
        self._lock = threading.Lock()
        self._seen = files.version()
        self._content = files.read()
        self._credentials = self._made()
        self._number = 0

    @property
    def number(self) -> int:
        """Of the content: another one once the files have changed, and their content is good."""
        with self._lock:
            self._look()
            return self._number

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """The same for all channels until files change, so that gRPC lets those to one address
        share a connection."""
        with self._lock:
            self._look()
            return self._credentials

    def _made(self) -> grpc.ChannelCredentials:
        cert, key, ca = self._content
        return grpc.ssl_channel_credentials(ca, key, cert)

    def server_credentials(self) -> grpc.ServerCredentials:
        """Each handshake is done with what the files hold then."""
        used = self.number

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            number = self.number
            if number == used:
                return None
            used = number
            return self._configuration()

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), renewed, require_client_authentication=True
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        with self._lock:
            cert, key, ca = self._content
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def _look(self) -> None:
        """Takes over what has changed. Never raises."""
        version = self._version()
        if version == self._seen:
            return
        # Of before the reading: what changes meanwhile is read again.
        self._seen = version
        try:
            content = self._files.read()
        except ConfigurationError as failure:
            log.warning("the certificate stays the one from before: %s", failure.message)
            return
        if content != self._content:
            self._content = content
            self._credentials = self._made()
            self._number += 1
            log.info("a new certificate was read from %s", self._files.cert)

    def _version(self) -> Version:
        """Of the files now; of one that is gone, none."""
        try:
            return self._files.version()
        except ConfigurationError:
            return ()


class TlsSettings(BaseSettings):
    """How a service and its peers know each other."""

    tls_cert: Path | None = Field(
        None,
        description="PEM file of this service's certificate: gateway, verifiers and drafters then"
        " talk to each other over mutual TLS; it is read again when it changes",
    )
    tls_key: Path | None = Field(None, description="PEM file of its private key")
    tls_ca: Path | None = Field(
        None, description="PEM file of the CA that has signed every service's certificate"
    )
    tls_name: str = Field(
        "slipstream", min_length=1, description="DNS name that every service's certificate carries"
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> TlsSettings:
        files = (self.tls_cert, self.tls_key, self.tls_ca)
        if any(files) and not all(files):
            raise ValueError("--tls-cert, --tls-key and --tls-ca belong together: give all or none")
        return self

    def tls(self) -> Tls | None:
        """The identity that the settings name; None without one. Reads files.

        Raises:
            ConfigurationError: they cannot be used.
        """
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return Tls(TlsFiles(self.tls_cert, self.tls_key, self.tls_ca, self.tls_name))


_identities: list[Tls | None] = [None]


@contextlib.contextmanager
def among_peers(tls: Tls | None) -> Iterator[None]:
    """Channels that are made while the block runs are `tls`'s; plain with None."""
    _identities.append(tls)
    try:
        yield
    finally:
        _identities.pop()


def identity() -> Tls | None:
    """What channels to peers use now."""
    return _identities[-1]


def refusal(details: str) -> str:
    """What a connection that could not be made has against one of the two certificates, in plain
    words; empty where that was not why.

    Args:
        details: of the call that failed, as gRPC has them.
    """
    if "CERTIFICATE_VERIFY_FAILED" in details:
        _, _, why = details.partition("CERTIFICATE_VERIFY_FAILED: ")
        why = why.removesuffix(": OK")
        return f"its certificate is not accepted, by the CA of --tls-ca: {why}"
    if "Hostname Verification Check failed" in details or "is not in peer certificate" in details:
        return "its certificate does not carry the name of --tls-name"
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks no TLS: give it --tls-cert, --tls-key and --tls-ca, too"
    cut = "Socket closed" in details or "onnection reset" in details
    if not cut or not details.startswith("failed to connect"):
        return ""
    if identity() is None:
        return "it hung up on a plain connection: if it has --tls-cert, give it here, too"
    # A server that refuses a certificate just closes; its own log has gRPC's line about it.
    return (
        "it hung up during the TLS handshake: it does not accept this service's certificate"
        " (another CA, expired), or is about to stop"
    )
