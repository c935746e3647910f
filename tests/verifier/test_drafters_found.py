"""Drafters that a Service of Kubernetes has: they appear, drain, vanish, and the link follows."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from slipstream.core.errors import Unavailable
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.fakes import FakeApiServer, endpoint, endpoint_slice
from slipstream.discovery.watch import Patience
from slipstream.discovery.zone import Zone
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.transport import Server
from tests.integration.processes import until
from verifier_service import drafter_link
from verifier_service.drafter_choice import DrafterChoice, Drafters
from verifier_service.drafter_link import DrafterLink
from verifier_service.rounds import Rounds
from verifier_service.telemetry import Telemetry

SPEC = "k8s:///d:grpc"
QUICK = Patience(first=0.05, most=0.1)


class Polite(drafter_pb2_grpc.DrafterServiceServicer):
    """Says hello, then nothing until its verifier leaves."""

    def __init__(self, **says):
        self.says = {"model_fingerprint": "ours", **says}
        self.others = self.verifiers = 0

    async def GetDrafter(self, request, context):  # noqa: N802 gRPC's name
        return drafter_pb2.GetDrafterResponse(**self.says, verifiers=self.verifiers + self.others)

    async def Draft(self, request_iterator, context):  # noqa: N802 gRPC's name
        self.verifiers += 1
        try:
            await anext(request_iterator)
            yield drafter_pb2.DraftResponse(hello=drafter_pb2.Hello())
            async for _ in request_iterator:
                pass
        finally:
            self.verifiers -= 1


class Engine:
    """Hears of drafters."""

    def __init__(self):
        self.heard = []

    def drafter_up(self, number, drafter):
        self.heard.append("up")

    def drafter_down(self, number):
        self.heard.append("down")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("POD_NAMESPACE", "default")
    # Nothing may come from a wait that would end anyway.
    monkeypatch.setattr("verifier_service.drafter_choice._LOOK_SECONDS", 600.0)
    monkeypatch.setattr("verifier_service.drafter_choice._SPREAD_SECONDS", 0.1)
    # Nor depend on how busy the machine is.
    monkeypatch.setattr("verifier_service.drafter_choice._ASK_SECONDS", 60.0)
    monkeypatch.setattr(drafter_link, "_PATIENCE_SECONDS", 600.0)
    monkeypatch.setattr(drafter_link, "_FIRST_BACKOFF_SECONDS", 600.0)
    monkeypatch.setattr(drafter_link, "_MOST_BACKOFF_SECONDS", 600.0)
    with FakeApiServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
        yield server


@contextlib.asynccontextmanager
async def serving(*drafters):
    """Their ports."""
    servers = [Server("127.0.0.1:0", ["slipstream.v1.DrafterService"]) for _ in drafters]
    for server, drafter in zip(servers, drafters, strict=True):
        drafter_pb2_grpc.add_DrafterServiceServicer_to_server(drafter, server.grpc)
    try:
        yield [await server.start() for server in servers]
    finally:
        for server in servers:
            await server.stop(0)


def put(api, port, pod, **facts):
    one = endpoint("127.0.0.1", pod=pod, **facts)
    ports = {"grpc": port}
    api.put(endpoint_slice("d", [one], name=pod, component="drafter", ports=ports))


@contextlib.asynccontextmanager
async def linked(zone=""):
    """A link that looks for drafters, and its engine."""
    endpoints = Endpoints(SPEC, "--drafter", "drafter", QUICK)
    choice = DrafterChoice(Drafters(endpoints, "ours", Zone(zone), "life"))
    mailbox = Mailbox(asyncio.get_running_loop())
    link = DrafterLink(choice, drafter_pb2.Hello(), mailbox, Rounds(Telemetry()))
    engine = Engine()
    running = asyncio.create_task(link.run(engine))
    try:
        yield link, engine
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_none_then_two_then_one(api, caplog):
    """No drafter is said once and is no warning; the first is taken as it appears; when it drains
    the link moves to the other, and stays there when the first is gone."""
    first, second = Polite(), Polite()
    async with serving(first, second) as ports, linked() as (link, engine):
        await until(lambda: "has no drafter now" in link.detail)
        put(api, ports[0], "d-0")
        await until(lambda: first.verifiers)
        put(api, ports[1], "d-1")
        await until(lambda: link.connected)
        assert link.address.endswith(f":{ports[0]}"), "one that is well is kept"
        put(api, ports[0], "d-0", terminating=True, serving=True)
        await until(lambda: second.verifiers and not first.verifiers)
        await until(lambda: link.connected)
        assert link.address.endswith(f":{ports[1]}")
        api.delete("EndpointSlice", "default", "d-0")
        await asyncio.sleep(0.1)
        assert engine.heard == ["up", "down", "up"]
    said = [one for one in caplog.records if "no drafter" in one.getMessage()]
    assert not [one for one in said if one.levelname == "WARNING"]


async def test_the_last_one_is_kept(api):
    """A drafter that drains serves on while there is no other; then the link moves at once."""
    last, later = Polite(), Polite()
    async with serving(last, later) as ports, linked() as (link, _):
        put(api, ports[0], "d-0")
        await until(lambda: link.connected)
        put(api, ports[0], "d-0", terminating=True, serving=True)
        await asyncio.sleep(0.2)
        assert last.verifiers == 1
        put(api, ports[1], "d-1")
        await until(lambda: later.verifiers and not last.verifiers)


async def test_one_that_drains_is_not_chosen(api):
    """Neither beside another one nor alone; the reason says that there is none now."""
    async with serving(Polite(), Polite()) as ports:
        put(api, ports[0], "d-0", terminating=True, serving=True)
        endpoints = Endpoints(SPEC, "--drafter", "drafter", QUICK)
        choice = DrafterChoice(Drafters(endpoints, "ours"))
        with pytest.raises(Unavailable, match="has no drafter now"):
            await choice.best()
        put(api, ports[1], "d-1")
        await until(lambda: len(endpoints._watches[SPEC].slices) == 2)
        assert await choice.best() == f"127.0.0.1:{ports[1]}"
        assert not choice.several
        await choice.close()


async def test_one_that_appears_once_another_is_chosen(api):
    """It is looked at, too, though the first look at who is listed finds it there already."""
    crowded, idle = Polite(), Polite()
    crowded.others = 2
    async with serving(crowded, idle) as ports:
        put(api, ports[0], "d-0")
        endpoints = Endpoints(SPEC, "--drafter", "drafter", QUICK)
        choice = DrafterChoice(Drafters(endpoints, "ours"))
        address = await choice.best()
        put(api, ports[1], "d-1")
        await until(lambda: len(endpoints._watches[SPEC].slices) == 2)
        async with asyncio.timeout(60):
            await choice.until_left_behind(address)
        await choice.close()


async def test_zones_of_the_slices(api):
    """Of two drafters that tell no zone, the one whose slice has the verifier's is chosen."""
    async with serving(Polite(), Polite(open_sequences=5), Polite(zone="b")) as ports:
        for place, zone in enumerate(("b", "a", "a")):
            put(api, ports[place], f"d-{place}", zone=zone)
        endpoints = Endpoints(SPEC, "--drafter", "drafter", QUICK)
        choice = DrafterChoice(Drafters(endpoints, "ours", Zone("a")))
        assert await choice.best() == f"127.0.0.1:{ports[1]}"
        await choice.close()


async def test_forbidden_is_told(api):
    """What the API server forbids is in the link's detail, which the gateway's /ready shows."""
    api.forbid("*", "endpointslices")
    async with linked() as (link, _):
        await until(lambda: "(forbidden, DNS cannot stand in for a named port)" in link.detail)


async def test_scaled_up(api):
    """One that appears is moved to where it leaves more for each, by two verifiers, or is of the
    own zone; where the next would only trade places, nobody moves."""
    crowded, idle, near = Polite(), Polite(), Polite()
    async with serving(crowded, idle, near) as ports, linked(zone="a") as (link, _):
        seen, look = [], link._choice._usable

        async def noted():
            seen.append(await look())
            return seen[-1]

        link._choice._usable = noted
        put(api, ports[0], "d-0", zone="b")
        await until(lambda: link.connected)
        put(api, ports[1], "d-1", zone="b")
        await asyncio.sleep(0.4)
        assert (crowded.verifiers, idle.verifiers) == (1, 0)
        api.delete("EndpointSlice", "default", "d-1")
        crowded.others = 1
        await until(lambda: len(seen[-1]) == 1)
        put(api, ports[1], "d-1", zone="b")
        await until(lambda: idle.verifiers and not crowded.verifiers)
        await until(lambda: link.connected)
        near.others = 3
        put(api, ports[2], "d-2", zone="a")
        await until(lambda: near.verifiers and not idle.verifiers)
