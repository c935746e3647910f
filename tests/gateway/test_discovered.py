"""Verifiers that a Service of Kubernetes has: the pool follows it, and says how."""

from __future__ import annotations

import asyncio

import pytest

from gateway.verifiers import pool as pool_module
from slipstream.discovery.fakes import FakeApiServer, endpoint, endpoint_slice
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.conftest import eventually
from tests.gateway.pooled import core

SPEC = "k8s:///v:grpc"
TOKENS = [5, 6, 7, 8]


@pytest.fixture
def api(monkeypatch):
    # Nothing may come from a look that would be due anyway.
    monkeypatch.setattr(pool_module, "_RESOLVE_SECONDS", 600.0)
    monkeypatch.setattr(pool_module, "_RESOLVE_SOON_SECONDS", 600.0)
    monkeypatch.setenv("POD_NAMESPACE", "default")
    with FakeApiServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        yield server


def put(api, fake, pod, **facts):
    """The fake as a pod; each has a slice of its own, as each has another port."""
    host, _, port = fake.address.rpartition(":")
    one = endpoint(host, pod=pod, **facts)
    ports = {"grpc": int(port)}
    api.put(endpoint_slice("v", [one], name=pod, component="verifier", ports=ports))


async def test_a_rollout(api, tokenizer):
    """Verifiers appear and are used at once; one that terminates gets nothing new while its stream
    goes on to its end, and is forgotten when it is gone."""
    async with core(tokenizer, TOKENS, spec=SPEC) as made:
        old, new = made.fakes
        await eventually(lambda: made.pool.discovery[0].source == "endpointslices")
        assert (await made.pool.readiness()).missing == (f"no verifier is known at {SPEC}",)
        put(api, old, "v-0")
        await made.until_states(serving=1)
        # While its pieces are not taken, it does not end.
        pieces = made.pieces()
        got = list((await anext(pieces)).tokens)
        put(api, new, "v-1")
        await made.until_states(serving=2)
        put(api, old, "v-0", terminating=True, serving=True)
        await made.until_states(serving=1, draining=1)
        assert await asyncio.gather(*(made.tokens() for _ in range(4))) == [TOKENS] * 4
        got += [token async for piece in pieces for token in piece.tokens]
        assert [token.id for token in got] == TOKENS
        assert made.requests() == [1, 4]
        found = await made.pool.readiness()
        [leaving] = [one for one in found.verifiers if one.state == "draining"]
        assert (leaving.address, leaving.detail) == (old.address, "its pod is terminating")
        assert (found.discovery[0].ready, found.discovery[0].draining) == (1, 1)
        api.delete("EndpointSlice", "default", "v-0")
        await made.until_states(serving=1)
        text = made.metrics.render().decode()
        assert 'discovery_endpoints{component="gateway",model_name="",state="ready"} 1.0' in text
        assert f'discovery_up{{component="gateway",model_name="",service="{SPEC}"}} 1.0' in text


async def test_one_that_is_to_go_is_better_than_none(api, tokenizer):
    """While no other one serves, a terminating pod that was not told to stop gets new calls, and
    the gateway is ready; from then on none, and it is not."""
    async with core(tokenizer, FakeBehaviour(TOKENS), spec=SPEC) as made:
        old, new = made.fakes
        put(api, old, "v-0")
        await made.until_states(serving=1)
        put(api, old, "v-0", terminating=True, serving=True)
        await made.until_states(draining=1)
        assert await made.tokens() == TOKENS
        assert (await made.pool.readiness()).missing == ()
        put(api, new, "v-1")
        await made.until_states(draining=1, serving=1)
        assert await made.tokens() == TOKENS
        assert made.requests() == [1, 1]
        api.delete("EndpointSlice", "default", "v-1")
        await made.until_states(draining=1)
        [link] = made.pool._links.values()
        link.drains()
        assert (await made.pool.readiness()).missing


async def test_not_listed_with_a_stream(api, tokenizer):
    """One that is not listed any more, as its probe fails while it stops, keeps its stream."""
    async with core(tokenizer, TOKENS, fakes=[{}], spec=SPEC) as made:
        put(api, made.fakes[0], "v-0")
        await made.until_states(serving=1)
        # While its pieces are not taken, it does not end.
        pieces = made.pieces()
        got = list((await anext(pieces)).tokens)
        put(api, made.fakes[0], "v-0", ready=False, terminating=True)
        await made.until_states(draining=1)
        got += [token async for piece in pieces for token in piece.tokens]
        assert [token.id for token in got] == TOKENS


async def test_zones_of_the_slices(api, tokenizer, monkeypatch):
    """Who does not tell its zone has that of its slice; the gateway's own is that of its pod."""
    monkeypatch.setenv("POD_NAME", "g-0")
    zone = "k8s:///g"
    async with core(tokenizer, TOKENS, [{}, {}, {"zone": "b"}], spec=SPEC, zone=zone) as made:
        for place, zone_told in enumerate(("b", "a", "a")):
            put(api, made.fakes[place], f"v-{place}", zone=zone_told)
        api.put(endpoint_slice("g", [endpoint("10.0.0.1", pod="g-0", zone="a", ready=False)]))
        await made.until_states(serving=3)
        await eventually(lambda: made.pool._zone.name == "a")
        for _ in range(4):
            assert await made.tokens() == TOKENS
        assert made.requests() == [0, 4, 0]
        zones = {one.address: one.zone for one in (await made.pool.readiness()).verifiers}
        assert [zones[fake.address] for fake in made.fakes] == ["b", "a", "b"]


async def test_degraded(api, tokenizer):
    """Without the right, readiness and metrics say what discovery lacks."""
    api.forbid("*", "endpointslices")
    async with core(tokenizer, TOKENS, [{}], spec=SPEC) as made:
        await eventually(lambda: made.pool.discovery[0].short.startswith("forbidden"))
        found = await made.pool.readiness()
        assert "Role of namespace default" in found.missing[1]
        up = f'discovery_up{{component="gateway",model_name="",service="{SPEC}"}} 0.0'
        assert up in made.metrics.render().decode()
        api.allow("*", "endpointslices")
        put(api, made.fakes[0], "v-0")
        await made.until_states(serving=1)
        assert await made.tokens() == TOKENS
