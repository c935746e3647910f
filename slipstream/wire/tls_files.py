"""The files of a mutual TLS identity, checked before they are used."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slipstream.core.errors import ConfigurationError

# Of a handshake with ourselves: TLS 1.3 takes two rounds.
_ROUNDS = 8
# OpenSSL's numbers of what is wrong with a certificate that every peer would refuse, too: its dates
# (9, 10), who signed it (2, 7, 18 to 21), its name (62). Not what it may be used for: a gateway's
# may be a client's.
_FATAL = frozenset({2, 7, 9, 10, 18, 19, 20, 21, 62})
Version = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: our certificate with those between it and the CA, its key, and the CA's.

    Attributes:
        name: the DNS name that certificates of peers carry, and ours.
    """

    cert: Path
    key: Path
    ca: Path
    name: str

    def version(self) -> Version:
        """Differs once a file was replaced or written. Raises ConfigurationError."""
        return tuple(_stamp(*each) for each in self._named())

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key, CA, which fit together.

        Raises:
            ConfigurationError: names the file and what is wrong with it.
        """
        cert, key, ca = (_content(*each) for each in self._named())
        self._check(ca)
        return cert, key, ca

    def _named(self) -> tuple[tuple[str, Path], ...]:
        return ("--tls-cert", self.cert), ("--tls-key", self.key), ("--tls-ca", self.ca)

    def _no_pair(self, failure: Exception) -> str:
        """Why certificate and key cannot be used together."""
        if getattr(failure, "reason", "") == "KEY_VALUES_MISMATCH":
            return (
                f"the key in {self.key} (--tls-key) is not that of the certificate in {self.cert}"
                " (--tls-cert)"
            )
        if b"ENCRYPTED" in _content("--tls-key", self.key):
            return f"{self.key} (--tls-key) is encrypted: give the key without a password"
        for option, path, kind in (
            ("--tls-cert", self.cert, b"CERTIFICATE"),
            ("--tls-key", self.key, b"PRIVATE KEY"),
        ):
            if b"-----BEGIN " not in (text := _content(option, path)) or kind not in text:
                return f"{path} ({option}) holds no {kind.decode().lower()} in PEM"
        return (
            f"{self.cert} (--tls-cert) or {self.key} (--tls-key) is damaged: they are read as"
            " a certificate and its key in PEM"
        )

    def _check(self, ca: bytes) -> None:
        """That a peer with the same settings would believe us, by a handshake with ourselves."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            # Without a password OpenSSL would ask for one, on the terminal.
            server.load_cert_chain(self.cert, self.key, password=lambda: b"")
        except (ssl.SSLError, OSError, ValueError) as failure:
            raise ConfigurationError(self._no_pair(failure)) from failure
        try:
            client.load_verify_locations(cadata=ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as failure:
            raise ConfigurationError(
                f"{self.ca} (--tls-ca) holds no certificate in PEM"
            ) from failure
        try:
            _shake_hands(server, client, self.name)
        except ssl.SSLError as failure:
            if getattr(failure, "verify_code", 0) in _FATAL:
                why = str(getattr(failure, "verify_message", "")).rstrip(".")
                raise ConfigurationError(
                    f"no peer would accept {self.cert} (--tls-cert), by {self.ca} (--tls-ca) and"
                    f" --tls-name {self.name}: {why}"
                ) from failure


def _stamp(option: str, path: Path) -> tuple[int, int, int]:
    """Of the file that a link leads to: a Secret in a volume changes by one that is replaced."""
    try:
        found = path.stat()
    except OSError as failure:
        raise ConfigurationError(_unreadable(option, path, failure)) from failure
    return found.st_ino, found.st_mtime_ns, found.st_size


def _content(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failure:
        raise ConfigurationError(_unreadable(option, path, failure)) from failure


def _unreadable(option: str, path: Path, failure: OSError) -> str:
    return f"{option} {path} cannot be read: {(failure.strerror or str(failure)).lower()}"


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A handshake in memory. Raises SSLCertVerificationError where the client refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(_ROUNDS):
        # Both in each round: neither gets on without the other.
        done = [_moved(end.do_handshake) for end in ends]
        if all(done):
            return


def _moved(handshake: Callable[[], None]) -> bool:
    try:
        handshake()
    except ssl.SSLWantReadError:
        return False
    return True
