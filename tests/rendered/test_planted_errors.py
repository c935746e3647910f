"""The test of a rendered release finds what is wrong with a release, and says what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.integration.processes import until
from tests.rendered.api import ReleaseApi
from tests.rendered.cluster import Cluster
from tests.rendered.container import Pace
from tests.rendered.manifests import Failed, Manifests, Object
from tests.rendered.releases import (
    DRAFTER,
    FULLNAME,
    GATEWAY,
    VERIFIER,
    added_secret,
    rendered,
)

# Two shards and TLS, so that there is more to get wrong; the model is in the volume already.
_CLAIM = "models"
_VALUES = {
    "model": {
        "path": "/models/tiny",
        "cache": {"type": "shared", "existingClaim": _CLAIM},
    },
    "drafter": {"shards": 2},
    "tls": {"enabled": True, "existingSecret": "peers"},
}
_QUICK = Pace(speed=10.0, patience=1.0)


@pytest.fixture(scope="module")
def rendering() -> Manifests:
    """With the certificates and the claim, which the chart does not make."""
    authority = Authority.new()
    certificate, key = authority.sign()
    files = {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.pem}
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": _CLAIM}, "spec": {}}
    found = added_secret(rendered("", _VALUES), "peers", files)
    return Manifests(found.namespace, (*found.objects, claim))


@pytest.fixture
def release(rendering: Manifests) -> Manifests:
    return rendering.copy()


@pytest.fixture
def folder(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """For the release's files; the model is in its claim already."""
    folder = tmp_path / "pods"
    (folder / "claims" / _CLAIM).mkdir(parents=True)
    (folder / "claims" / _CLAIM / "tiny").symlink_to(tiny_model_dir)
    return folder


def _changed(item: Object, path: str, value: Any) -> None:
    """Replaces one place: fields by their names, entries of lists by the beginning of their text or
    by their name. The last step may be a word of an argument, which `value` then replaces."""
    place: Any = item
    *steps, last = path.split("/")
    for step in steps:
        place = place[_key(place, step)]
    place[_key(place, last)] = value


def _key(place: Any, step: str) -> Any:
    if isinstance(place, Mapping):
        return step
    for number, entry in enumerate(place):
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if name == step or (isinstance(entry, str) and entry.startswith(f"{step}=")):
            return number
    raise AssertionError(f"nothing is called {step}, in {place}")


_POD = "spec/template/spec"
_OF_GATEWAY = f"{_POD}/containers/gateway"
_OF_VERIFIER = f"{_POD}/containers/verifier"
_OF_DRAFTER = f"{_POD}/containers/drafter"

# What is changed in what, and the reason and message that are expected. None of these starts a
# process.
_WITHOUT_PROCESSES = [
    (DRAFTER, f"{_OF_DRAFTER}/env/POD_INDEX/name", "INDEX",
     "CreateContainerConfigError", "refers to POD_INDEX"),
    (GATEWAY, f"{_OF_GATEWAY}/env/REDIS_PASSWORD/valueFrom/secretKeyRef/key", "password",
     "CreateContainerConfigError", 'has no key "password"'),
    (GATEWAY, f"{_OF_GATEWAY}/env/SLIPSTREAM_GATEWAY_SESSION_STORE/name",
     "SLIPSTREAM_GATEWAY_STORE", "UnknownSetting", "SLIPSTREAM_GATEWAY_STORE"),
    (GATEWAY, f"{_POD}/volumes/api-keys/secret/secretName", "keys",
     "FailedMount", 'secret "keys" not found'),
    (GATEWAY, f"{_OF_GATEWAY}/volumeMounts/api-keys/mountPath", "/etc/keys",
     "ReadOnlyFileSystem", "/etc/slipstream/keys/keys"),
    (VERIFIER, f"{_OF_VERIFIER}/volumeMounts/tls/mountPath", "/tls",
     "ReadOnlyFileSystem", "/etc/slipstream/tls/tls.crt"),
    (VERIFIER, f"{_POD}/volumes/models/persistentVolumeClaim/claimName", "model",
     "FailedMount", 'persistentvolumeclaim "model" not found'),
    (VERIFIER, f"{_OF_VERIFIER}/args/--drafter", f"--drafter=k8s:///{FULLNAME}-draft:50052",
     "NoSuchService", f"{FULLNAME}-draft"),
    (GATEWAY, f"{_OF_GATEWAY}/args/--verifier", f"--verifier=k8s:///{VERIFIER}:50052",
     "NoSuchPort", "50051"),
    (VERIFIER, f"{_OF_VERIFIER}/ports/grpc/name", "rpc", "NoSuchPort", '"grpc"'),
    (DRAFTER, "spec/serviceName", "drafters", "FailedCreate", 'service "drafters" not found'),
    (DRAFTER, f"{_POD}/serviceAccountName", "drafters", "FailedCreate", "serviceaccount"),
    (GATEWAY, f"{_POD}/containers/gateway/command/python", "python3.9", "StartError", "python3.9"),
]  # fmt: skip


async def _failure(manifests: Manifests, folder: Path, workload: str) -> Failed:
    """What comes of the pods of one workload."""
    api = ReleaseApi(manifests)
    cluster = Cluster(manifests, folder, api, _QUICK)
    try:
        with pytest.raises(Failed) as failed:
            await cluster.start(60, only=[workload])
        return failed.value
    finally:
        await cluster.close()
        api.close()


# The same, for which a process has to run: those without a model where possible.
_WITH_PROCESSES = [
    (GATEWAY, f"{_OF_GATEWAY}/args/--http", "--htp=0.0.0.0:8000",
     "Error", "unrecognized arguments: --htp"),
    (GATEWAY, f"{_OF_GATEWAY}/args/--http", "--http=127.0.0.3:8000",
     "Unhealthy", "the container listens on [50050]"),
    (GATEWAY, f"{_OF_GATEWAY}/args/--grpc", "--grpc=0.0.0.0:50059",
     "PortClosed", "[8000, 50059]"),
    (GATEWAY, f"{_OF_GATEWAY}/readinessProbe/httpGet/path", "/readyz", "Unhealthy", "/readyz: 401"),
    (DRAFTER, f"{_OF_DRAFTER}/startupProbe/grpc/service", "started", "Unhealthy", "NOT_FOUND"),
    (VERIFIER, f"{_OF_VERIFIER}/startupProbe/grpc/port", 50062,
     "Unhealthy", "the container listens on [9400, 50051, 50061]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("workload", "path", "value", "reason", "message"), [*_WITHOUT_PROCESSES, *_WITH_PROCESSES]
)
async def test_an_error_is_named(
    release: Manifests,
    folder: Path,
    workload: str,
    path: str,
    value: object,
    reason: str,
    message: str,
) -> None:
    """A wrong flag, port, variable, probe, path or key, in Kubernetes' word where it has one."""
    owner = next(o for o in release.workloads if o["metadata"]["name"] == workload)
    _changed(owner, path, value)
    failed = await _failure(release, folder, workload)
    assert (failed.reason, message in failed.message) == (reason, True), failed


async def test_a_service_that_selects_nobody_is_named(release: Manifests, folder: Path) -> None:
    """Nothing would ever be sent there."""
    release.get("Service", VERIFIER)["spec"]["selector"] = {"component": "verifier"}
    assert (await _failure(release, folder, VERIFIER)).reason == "NoEndpoints"


async def test_a_right_that_is_missing_is_named(release: Manifests, folder: Path) -> None:
    """The gateway starts, asks, and is refused."""
    (rule,) = release.get("Role", f"{FULLNAME}-discovery")["rules"]
    rule["verbs"].remove("list")
    api = ReleaseApi(release)
    cluster = Cluster(release, folder, api, _QUICK)
    starting = asyncio.create_task(cluster.start(60, only=[GATEWAY]))
    try:
        await until(api.refused, 60)
        assert api.refused()[0] == f"{GATEWAY}: list endpointslices in {release.namespace}"
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await cluster.close()
        api.close()
