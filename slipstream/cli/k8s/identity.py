"""The certificate with which the doctor talks to verifiers and drafters, where they ask for one."""

from __future__ import annotations

import base64
import binascii
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slipstream.cli.k8s.api import Cluster, Object
from slipstream.cli.k8s.findings import Finding, note, problem
from slipstream.cli.k8s.release import Release, main_container, option
from slipstream.core.errors import ClusterForbidden, ClusterNotFound, ConfigurationError
from slipstream.wire.tls import Tls
from slipstream.wire.tls_files import TlsFiles


@dataclass(frozen=True, slots=True)
class Given:
    """The options; all or none."""

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def files(self, name: str) -> TlsFiles | None:
        """Raises ConfigurationError where some are given and some are not."""
        if self.cert and self.key and self.ca:
            return TlsFiles(self.cert, self.key, self.ca, name)
        if self.cert or self.key or self.ca:
            raise ConfigurationError(
                "--tls-cert, --tls-key and --tls-ca belong together: give all or none"
            )
        return None


@contextlib.contextmanager
def identity_for(
    release: Release, cluster: Cluster, given: Given, found: list[Finding]
) -> Iterator[tuple[Tls | None, bool]]:
    """Our identity while the block runs, and whether services can be asked with it.

    It is the one that is given, else what the release's own Secret holds, for as long as this runs
    in a folder of our own; none where the release has no TLS.

    Raises:
        ConfigurationError: the files that are given cannot be used.
    """
    specs = [
        one["spec"]["template"]["spec"]
        for role in ("verifier", "drafter")
        for one in release.workloads(role)
    ]
    secured = [spec for spec in specs if option(spec, "tls-cert")]
    name = option(secured[0], "tls-name") if secured else ""
    files = given.files(name or "slipstream")
    if files is not None or not secured:
        yield (Tls(files) if files is not None else None), True
        return
    with tempfile.TemporaryDirectory(prefix="slipstream-doctor-") as folder:
        tls = None
        secret = _secret(secured[0])
        try:
            tls = _from_secret(cluster, release, secret, Path(folder), name or "slipstream")
        except (ClusterForbidden, ClusterNotFound) as failure:
            found.append(
                note(
                    "tls-unseen",
                    release.name,
                    "verifiers and drafters ask for a certificate, and the release's cannot be read"
                    f" ({failure.message}): they are not asked",
                    "give --tls-cert, --tls-key and --tls-ca, or the right to get that Secret",
                )
            )
        except ConfigurationError as failure:
            found.append(
                problem(
                    "tls-unusable",
                    f"secret {secret}",
                    f"no connection is made with it: {failure.message}",
                    "it needs tls.crt, tls.key and ca.crt, all of one CA and in date: see the"
                    " Certificate of cert-manager, or make it anew",
                )
            )
        yield tls, tls is not None


def _from_secret(cluster: Cluster, release: Release, secret: str, folder: Path, name: str) -> Tls:
    """The identity that a Secret of the release holds, written into `folder`.

    Raises:
        ClusterForbidden, ClusterNotFound: the Secret cannot be had.
        ConfigurationError: its content cannot be used.
    """
    if not secret:
        raise ClusterNotFound("it is not mounted from a Secret")
    data = cluster.get("secrets", release.namespace, secret).get("data") or {}
    files = TlsFiles(folder / "tls.crt", folder / "tls.key", folder / "ca.crt", name)
    for path in (files.cert, files.key, files.ca):
        path.touch(mode=0o600)
        path.write_bytes(_decoded(data, path.name))
    return Tls(files)


def _secret(spec: Object) -> str:
    """Name of the Secret from which a pod has its certificate; empty where it is not from one."""
    cert = option(spec, "tls-cert")
    mounted = {
        mount["name"]
        for mount in main_container(spec).get("volumeMounts") or ()
        if cert.startswith(mount["mountPath"].rstrip("/") + "/")
    }
    for volume in spec.get("volumes") or ():
        if volume["name"] in mounted and (secret := volume.get("secret")):
            return str(secret["secretName"])
    return ""


def _decoded(data: Object, key: str) -> bytes:
    try:
        return base64.b64decode(data[key], validate=True)
    except (KeyError, binascii.Error, TypeError) as failure:
        raise ConfigurationError(f"it has no usable {key}") from failure
