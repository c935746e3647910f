"""`slipstream k8s doctor` from its command line: the API server's double, services over gRPC."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from slipstream.cli.k8s import api as api_module
from slipstream.cli.k8s import asking as asking_module
from slipstream.cli.main import app
from slipstream.core.errors import ConfigurationError, DeadlineExceeded, Unavailable
from slipstream.discovery.fakes import FakeApiServer
from slipstream.wire.proto import drafter_pb2_grpc, verifier_pb2_grpc
from slipstream.wire.status import unary
from slipstream.wire.tls import Tls
from slipstream.wire.tls_files import TlsFiles
from slipstream.wire.transport import Server
from tests.certificates import Authority
from tests.cli.lying_server import LyingServer, lying_server
from tests.cli.releases import PORTS, Objects, drafter, model, ready, status


class TellingVerifier(verifier_pb2_grpc.VerifierServiceServicer):
    """Says what a healthy verifier says."""

    @unary
    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return model()

    @unary
    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return status()


class TellingDrafter(drafter_pb2_grpc.DrafterServiceServicer):
    @unary
    async def GetDrafter(self, request: Any, context: Any) -> Any:  # noqa: N802
        return drafter()


@contextlib.asynccontextmanager
async def services(tls: Tls | None = None) -> AsyncIterator[dict[str, str]]:
    """Addresses by role, while the block runs."""
    verifier = Server("127.0.0.1:0", [], tls=tls)
    verifier_pb2_grpc.add_VerifierServiceServicer_to_server(TellingVerifier(), verifier.grpc)
    fake = Server("127.0.0.1:0", [], tls=tls)
    drafter_pb2_grpc.add_DrafterServiceServicer_to_server(TellingDrafter(), fake.grpc)
    found = {
        "verifier": f"127.0.0.1:{await verifier.start()}",
        "drafter": f"127.0.0.1:{await fake.start()}",
    }
    try:
        yield found
    finally:
        await asyncio.gather(verifier.stop(0), fake.stop(0))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine takes for an answer is no finding."""
    monkeypatch.setattr(asking_module, "_SECONDS", 100.0)
    monkeypatch.setattr(api_module, "_SECONDS", 100.0)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApiServer]:
    with FakeApiServer(namespace="models") as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig))
        yield api


@pytest.fixture
def gateway() -> Iterator[LyingServer]:
    with lying_server() as server:
        server.ready = ready("10.0.1.0", "10.0.1.1")
        yield server


def put(api: FakeApiServer, objects: Objects) -> None:
    for one in objects.all.values():
        one["metadata"]["namespace"] = "models"
        api.put(one)


def open_doors(api: FakeApiServer, addresses: dict[str, str], gateway: LyingServer) -> None:
    """Ports of the pods lead to these."""
    where = {**addresses, "gateway": gateway.url.removeprefix("http://")}
    for role, address in where.items():
        number = PORTS[role]["http" if role == "gateway" else "grpc"]
        for index in range(2):
            api.doors.ports[f"chat-slipstream-{role}-{index}", number] = address


async def doctor(*options: str) -> Any:
    return await asyncio.to_thread(CliRunner().invoke, app, ["k8s", "doctor", *options])


async def test_healthy_release_through_the_api_server(
    api: FakeApiServer, gateway: LyingServer
) -> None:
    """From outside, all pods are asked by port-forward, and a healthy release gives no warning."""
    put(api, Objects())
    async with services() as addresses:
        open_doors(api, addresses, gateway)
        result = await doctor()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "release chat in namespace models"
    assert {line.split()[0] for line in lines[1:-1]} == {"ok"}, result.output
    assert lines[-1].startswith("0 problems, 0 warnings, 0 notes, ")
    assert sorted(api.doors.forwards) == [
        ("chat-slipstream-drafter-0", 50052),
        ("chat-slipstream-gateway-0", 8000),
        ("chat-slipstream-verifier-0", 50051),
        ("chat-slipstream-verifier-1", 50051),
    ]
    # Nothing was changed.
    assert {asked.verb for asked in api.requests} <= {"get", "list", "create", ""}
    assert not [asked for asked in api.requests if asked.verb == "create" and asked.resource]


async def test_problems_as_json(api: FakeApiServer, gateway: LyingServer) -> None:
    """A problem makes the exit code 1; --json tells all of it; a pod that is cut off is named with
    what the API server says of its port."""
    objects = Objects()
    container = objects.pod("verifier")["spec"]["containers"][0]
    container["resources"] = {"limits": {"nvidia.com/gpu": 1}}
    put(api, objects)
    async with services() as addresses:
        open_doors(api, addresses, gateway)
        del api.doors.ports["chat-slipstream-drafter-0", 50052]
        result = await doctor("--json", "--release", "chat", "--namespace", "models")
    assert result.exit_code == 1, result.output
    told = json.loads(result.output)
    assert (told["namespace"], told["release"]) == ("models", "chat")
    worst = [one for one in told["findings"] if one["level"] in {"problem", "warning"}]
    assert [one["check"] for one in worst] == ["gpu-unused", "no-answer"]
    assert set(worst[0]) == {"level", "check", "about", "text", "do"}
    assert worst[-1]["about"] == "chat-slipstream-drafter-0"
    assert "error forwarding port 50052 to pod chat-slipstream-drafter-0" in worst[-1]["text"]


async def test_no_right_to_forward(api: FakeApiServer, gateway: LyingServer) -> None:
    """Without the right to forward ports each pod's finding says which right that is."""
    put(api, Objects())
    api.forbid("get", "pods/portforward")
    result = await doctor()
    assert result.exit_code == 0, result.output
    assert result.output.count("a Role needs the verbs get and create on pods/portforward") == 4


async def test_direct(api: FakeApiServer, gateway: LyingServer) -> None:
    """With --reach direct pods are asked at their own addresses; nothing is forwarded."""
    objects = Objects()
    async with services() as addresses:
        for role, address in {**addresses, "gateway": gateway.url[7:]}.items():
            for index in range(2):
                if ("Pod", f"chat-slipstream-{role}-{index}") in objects.all:
                    pod = objects.pod(role, index)
                    pod["status"]["podIP"] = "127.0.0.1"
                    ports = pod["spec"]["containers"][0]["ports"]
                    ports[0]["containerPort"] = int(address.rpartition(":")[2])
        put(api, objects)
        result = await doctor("--reach", "direct")
    assert result.exit_code == 0, result.output
    assert "all 4 pods that serve answer" in result.output
    assert api.doors.forwards == []


def secured(objects: Objects) -> None:
    """Verifiers and drafters with TLS, from a Secret."""
    for role in ("verifier", "drafter"):
        spec = objects.template(role)
        container = spec["containers"][0]
        container["args"] = [*container["args"], "--tls-cert=/etc/slipstream/tls/tls.crt"]
        container["volumeMounts"] = [{"name": "tls", "mountPath": "/etc/slipstream/tls"}]
        spec["volumes"] = [*spec["volumes"], {"name": "tls", "secret": {"secretName": "chat-tls"}}]


async def test_mutual_tls(api: FakeApiServer, gateway: LyingServer, tmp_path: Path) -> None:
    """Services that ask for a certificate get the release's own, from its Secret, or the one that
    is given; without either they are not asked, which is said."""
    authority, objects = Authority.new(), Objects()
    cert, key = authority.sign()
    content = {"tls.crt": cert, "tls.key": key, "ca.crt": authority.pem}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    secured(objects)
    data = {name: base64.b64encode(value).decode() for name, value in content.items()}
    objects.add("Secret", "chat-tls", data=data)
    put(api, objects)
    files = [tmp_path / name for name in content]
    async with services(Tls(TlsFiles(*files, "slipstream"))) as addresses:
        open_doors(api, addresses, gateway)
        result = await doctor()
        assert result.exit_code == 0, result.output
        assert "all 4 pods that serve answer" in result.output
        api.forbid("get", "secrets")
        result = await doctor()
        assert "they are not asked" in result.output
        options = zip(("--tls-cert", "--tls-key", "--tls-ca"), map(str, files), strict=True)
        result = await doctor(*(word for pair in options for word in pair))
        assert "all 4 pods that serve answer" in result.output
        result = await doctor("--tls-cert", str(files[0]))
        assert isinstance(result.exception, ConfigurationError)
        assert "belong together" in result.exception.message


async def test_certificate_that_cannot_be_used(api: FakeApiServer, gateway: LyingServer) -> None:
    """A Secret without a usable certificate is a problem of the release, not of the doctor."""
    objects = Objects()
    secured(objects)
    objects.add("Secret", "chat-tls", data={"tls.crt": "eA==", "tls.key": "eA=="})
    put(api, objects)
    result = await doctor("--json")
    assert result.exit_code == 1, result.output
    [one] = [one for one in json.loads(result.output)["findings"] if one["level"] == "problem"]
    assert (one["check"], one["about"]) == ("tls-unusable", "secret chat-tls")
    assert "it has no usable ca.crt" in one["text"]


async def test_no_cluster_and_no_time(
    api: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API server that is not there, or does not answer, ends it with one message, in time."""
    put(api, Objects())
    api.delay = 60.0
    result = await doctor("--timeout", "1")
    assert isinstance(result.exception, DeadlineExceeded)
    assert "--timeout" in result.exception.message
    api.delay = 0.0
    api.wake()
    api.stop()
    result = await doctor()
    assert isinstance(result.exception, Unavailable)
    assert "cannot be reached" in result.exception.message
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    result = await doctor()
    assert isinstance(result.exception, ConfigurationError)
