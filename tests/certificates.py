"""A certificate authority for tests, and what it signs."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from slipstream.wire.tls_files import TlsFiles

NAME = "slipstream"
DAY = dt.timedelta(days=1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    hidden: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        hidden = serialization.BestAvailableEncryption(password)
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, hidden)


@dataclass(frozen=True)
class Authority:
    """Signs certificates; one of its own makes nobody believe another one's."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str = "a CA") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_named(name), _named(name), key, DAY)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return cls(made.sign(key, hashes.SHA256()), key)

    @property
    def pem(self) -> bytes:
        return _pem(self.certificate)

    def sign(self, name: str = NAME, *, lasts: dt.timedelta = DAY) -> tuple[bytes, bytes]:
        """A certificate for a DNS name, and its key; both in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_named("a service"), self.certificate.subject, key, lasts)
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return _pem(made.sign(self.key, hashes.SHA256())), key_pem(key)

    def files(self, folder: Path, name: str = NAME) -> TlsFiles:
        """A new certificate and this authority's, in a folder as a Secret is mounted."""
        put(folder, *self.sign(name), self.pem)
        return TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt", NAME)


def put(folder: Path, cert: bytes, key: bytes, ca: bytes) -> None:
    """Replaces all three at once, as the kubelet does: a link leads to another folder."""
    folder.mkdir(exist_ok=True)
    data = folder / f"..2{len(list(folder.glob('..2*')))}"
    data.mkdir()
    for name, content in (("tls.crt", cert), ("tls.key", key), ("ca.crt", ca)):
        (data / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..new").symlink_to(data.name)
    (folder / "..new").replace(folder / "..data")


def options(files: TlsFiles) -> tuple[str, ...]:
    """Of a service's command line."""
    return (
        f"--tls-cert={os.fspath(files.cert)}",
        f"--tls-key={os.fspath(files.key)}",
        f"--tls-ca={os.fspath(files.ca)}",
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    lasts: dt.timedelta,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + lasts)
    )
