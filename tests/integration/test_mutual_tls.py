"""Services as in a cluster: mutual TLS between all, shards by ordinal, probed while they run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.server import serving
from gateway.settings import Settings
from slipstream.engine.checkpoint import load_model
from slipstream.engine.runner import ModelRunner
from slipstream.wire.tls import Tls, among_peers
from slipstream.wire.tls_files import TlsFiles
from slipstream.wire.transport import is_serving
from tests.certificates import Authority, options
from tests.integration.client import Client, drafter_status
from tests.integration.conftest import TINY
from tests.integration.processes import Service, free_address, until
from tests.kv.rig import verifier as plain_verifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is of loopback there")
ASKED = [
    {"prompt": "The quick brown fox", "temperature": 0},
    {"prompt": "A verifier decides", "temperature": 1, "seed": 7},
]


@dataclass(frozen=True)
class Cluster:
    """Two shards, the second drafter of a StatefulSet's, and a verifier."""

    files: TlsFiles
    shards: list[Service]
    verifier: Service
    health: dict[Service, str]


@pytest.fixture(scope="module")
def cluster(start, tiny_model_dir, exact_plan, tmp_path_factory) -> Iterator[Cluster]:
    authority = Authority.new()
    port = free_address().rpartition(":")[2]
    hosts = [f"127.0.0.2:{port}", f"127.0.0.3:{port}"]
    health = [free_address() for _ in range(3)]

    def tls(name: str) -> tuple[str, ...]:
        return options(authority.files(tmp_path_factory.mktemp("tls") / name))

    shards = [
        start(
            "drafter",
            tiny_model_dir,
            (
                *TINY, *tls("drafter"), "--layer-plan", str(exact_plan), f"--health={health[n]}",
                "--shard-count=2", f"--ordinal={2 + n}", f"--peers=127.0.0.{{}}:{port}",
                "--shard-timeout=5",
            ),
            hosts[n],
        )
        for n in range(2)
    ]  # fmt: skip
    # As a headless Service lists them: both, in any order.
    places = f"{hosts[1]},{hosts[0]}"
    more = (
        "--exactness",
        "strict",
        "--draft-length",
        "8",
        "--drafter",
        places,
        f"--health={health[2]}",
    )
    verifier = start("verifier", tiny_model_dir, (*TINY, *tls("verifier"), *more))
    files = authority.files(tmp_path_factory.mktemp("tls") / "gateway")
    with among_peers(Tls(files)):
        for service in (*shards, verifier):
            service.wait_ready()
    yield Cluster(files, shards, verifier, dict(zip((*shards, verifier), health, strict=True)))
    for service in (*shards, verifier):
        service.kill()


@pytest.fixture
def runner(tiny_model_dir) -> Iterator[ModelRunner]:
    """The model here, on one thread: the services have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ModelRunner(load_model(tiny_model_dir), 1 << 22)
    torch.set_num_threads(before)


@contextlib.asynccontextmanager
async def door(
    model: Path, verifier: str, files: TlsFiles | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway."""
    names = () if files is None else ("cert", "key", "ca")
    certificates = {f"tls_{name}": getattr(files, name) for name in names}
    settings = Settings(
        model=model,
        verifier=verifier,
        http="127.0.0.1:0",
        grpc="127.0.0.1:0",
        session_store="off",
        served_model_name="tiny",
        stop_grace=0.2,
        **certificates,
    )
    async with serving(settings) as gateway:
        url = f"http://127.0.0.1:{gateway.http_port}"
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client


async def texts(client: httpx.AsyncClient) -> list[str]:
    async with asyncio.timeout(60):
        while (await client.get("/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    found = []
    for asked in ASKED:
        body = {"model": "tiny", "max_tokens": 60, "ignore_eos": True, **asked}
        answer = await client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["choices"][0]["text"])
    return found


async def probe(address: str, service: str) -> bool:
    async with grpc.aio.insecure_channel(address) as link:
        stub = health_pb2_grpc.HealthStub(link)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        return reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_same_tokens(cluster, runner, tiny_model_dir) -> None:
    """Over mutual TLS, with a drafter in two shards that reads the verifier's keys and values: the
    tokens of plain decoding over plain connections; who has no certificate gets no answer."""
    async with (
        plain_verifier(runner, pause=0.0) as plain,
        door(tiny_model_dir, plain.address) as client,
    ):
        expected = await texts(client)
    async with (
        door(tiny_model_dir, cluster.verifier.address, cluster.files) as client,
        Client(cluster.verifier.address) as peer,
    ):
        await until(peer.connected)

        async def drafted() -> bool:
            """On a busy machine answers may be over before their contexts or drafts are there."""
            assert await texts(client) == expected
            told = await peer.status()
            kv = (await drafter_status(cluster.shards[0].address)).kv
            # Too late they may be, and no worse.
            assert kv.fallbacks.keys() <= {"slow", "not_found", "expired"}
            return kv.pulls > 0 and told.accepted_tokens - told.accepted_guess_tokens > 20

        await until(drafted)
    for service in (*cluster.shards, cluster.verifier):
        assert "certificate" not in service.log
        assert not await is_serving(service.address)


async def test_probes_of_a_row(cluster) -> None:
    """All are ready; with its second shard gone the first is alive, started, and not ready."""
    for address in cluster.health.values():
        for name in ("", "readiness", "liveness", "startup"):
            assert await probe(address, name), name
    first, second = cluster.shards
    assert await asyncio.to_thread(second.terminate) == 0
    await until(lambda: _not_ready(cluster.health[first]))
    assert await probe(cluster.health[first], "liveness")
    assert await probe(cluster.health[first], "startup")


async def _not_ready(address: str) -> bool:
    return not await probe(address, "readiness")
