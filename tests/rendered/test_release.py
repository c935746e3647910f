"""A release of the chart, as helm renders it, really runs, and a rollout loses nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.integration.processes import until
from tests.models.hub_double import Hub
from tests.rendered.api import ReleaseApi
from tests.rendered.client import Client, metric, paired, request, watched
from tests.rendered.cluster import Cluster
from tests.rendered.manifests import Manifests
from tests.rendered.pod import Pod
from tests.rendered.releases import DRAFTER, FULLNAME, GATEWAY, VERIFIER, hub_of, rendered, secret
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]
# For a machine that does other things, too; it takes a tenth of it by itself.
_START_SECONDS = 100.0
# So many that the stream outlives the start of two drains.
_TOKENS = 800


@dataclass(frozen=True)
class Running:
    """The release that these tests share."""

    manifests: Manifests
    cluster: Cluster
    api: ReleaseApi
    key: str
    hub: Hub

    def client(self, gateway: int = 0) -> Client:
        return Client(self.cluster.of(GATEWAY)[gateway], self.key)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def release(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Two gateways, two verifiers, a drafter and Redis."""
    folder = tmp_path_factory.mktemp("release")
    model = write_tiny_model(folder / "model")
    with hub_of(model) as hub:
        manifests = rendered(hub.url, {"gateway": {"replicas": 2}, "verifier": {"replicas": 2}})
        api = ReleaseApi(manifests)
        cluster = Cluster(manifests, folder / "pods", api)
        try:
            await cluster.start(_START_SECONDS)
            key = secret(manifests, f"{FULLNAME}-api-keys", "api-key")
            yield Running(manifests, cluster, api, key, hub)
        finally:
            await cluster.close()
            api.close()


async def test_everything_becomes_ready_and_finds_each_other(release: Running) -> None:
    """Every container started once, then was ready; the gateway knows both verifiers, their zones
    and their drafter, and the store."""
    for pod in release.cluster.pods:
        assert pod.main.history == [("started", True), ("ready", True)], pod.name
    await until(lambda: paired(release.client()))
    ready = (await release.client().get("/ready")).json()
    assert {one["zone"] for one in ready["verifiers"]} == {"zone-a", "zone-b"}
    assert all(one["state"] == "serving" for one in ready["verifiers"])
    assert ready["store"]["state"] == "ok"
    assert release.hub.served["model.safetensors"] == 3, "gateways need the tokenizer only"


async def test_what_helm_test_runs_succeeds(release: Running) -> None:
    """The pod's own command: speculative equals plain, and the drafter's drafts were verified."""
    (test,) = release.manifests.hooks("test")
    code, output = await release.cluster.run_hook(test, 100)
    assert code == 0, output
    assert "--expect-drafts" in test["spec"]["containers"][0]["args"]


async def test_the_secret_holds_the_key(release: Running) -> None:
    """Without a key and with another one: 401."""
    gateway = release.cluster.of(GATEWAY)[0]
    for key, status in (("", 401), ("no-such-key", 401), (release.key, 200)):
        answer = await Client(gateway, key).post("/v1/completions", request(max_tokens=2))
        assert answer.status_code == status, answer.text


async def test_gateways_share_their_sessions(release: Running) -> None:
    """What one keeps in the bundled Redis another one finds."""
    made = await release.client(0).post("/v1/sessions", {"id": "shared"})
    assert made.status_code in (200, 201), made.text
    assert (await release.client(1).get("/v1/sessions/shared")).status_code == 200


async def _busy(verifiers: list[Pod]) -> Pod:
    """The one that generates."""
    found: list[Pod] = []

    async def look() -> list[Pod]:
        name = "slipstream:num_requests_running"
        found.extend([one for one in verifiers if await metric(one, name)])
        return found

    await until(look)
    return found[0]


async def test_a_rollout_loses_nothing(release: Running) -> None:
    """While a stream runs, its gateway and its verifier are replaced: it goes on to its end, and is
    what an undisturbed request gets. Readiness goes red at once and liveness stays green, endpoints
    terminate and still serve, and both end with 0 in time."""
    cluster, body = release.cluster, request(max_tokens=_TOKENS, ignore_eos=True)
    gateway = cluster.of(GATEWAY)[0]
    await cluster.surge(GATEWAY, _START_SECONDS)
    texts: list[str] = []

    async def read() -> float:
        texts.extend([text async for text in Client(gateway, release.key).stream(body)])
        return time.monotonic()

    reading = asyncio.create_task(read())
    verifier = await _busy(cluster.of(VERIFIER))
    looks = [asyncio.create_task(watched(pod.main)) for pod in (gateway, verifier)]
    ends = await asyncio.gather(cluster.end(gateway), cluster.roll(verifier, _START_SECONDS))
    read_until = await asyncio.wait_for(reading, 100)
    for end, pod in zip(ends, (gateway, verifier), strict=True):
        assert set(end.codes.values()) == {0}, end
        assert end.seconds < end.grace
        assert read_until > pod.main.terminated_at, "the stream was over before SIGTERM"
    of_gateway, of_verifier = await asyncio.gather(*looks)
    for seen in (of_gateway, of_verifier):
        assert all(alive for _, alive in seen), "liveness stays green"
        assert seen == sorted(seen, reverse=True), "readiness does not come back"
        assert (False, True) in seen, "it takes no new work while it drains"
    states = release.api.states(gateway.name)
    assert (False, True, True) in states, "terminating, and still serving"
    assert states[-1] == (False, False, True), "and then not serving"

    undisturbed = await release.client().post("/v1/completions", body)
    assert "".join(texts) == undisturbed.json()["choices"][0]["text"]
    assert undisturbed.json()["usage"]["completion_tokens"] == _TOKENS


async def test_nobody_asks_for_more_than_its_rights(release: Running) -> None:
    """Each asks for EndpointSlices, as its Role lets it, and for nothing else; who looks for others
    watches them, and a drafter looks up its own zone."""
    asked = {(account, one.verb, one.resource) for account, one in release.api.asked()}
    assert (DRAFTER, "list", "endpointslices") in asked
    for account in (GATEWAY, VERIFIER):
        assert (account, "watch", "endpointslices") in asked
    assert release.api.refused() == []


async def test_an_uninstall_is_clean(release: Running) -> None:
    """All pods at once: each ends with 0 before its grace is over, and nothing had failed."""
    assert release.cluster.failures() == []
    for name, end in (await release.cluster.stop()).items():
        assert set(end.codes.values()) == {0}, name
        assert end.seconds < end.grace, name
