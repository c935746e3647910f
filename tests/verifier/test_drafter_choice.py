"""Which of several drafters is chosen, and which are left out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import grpc
import pytest

from slipstream.core.errors import ModelMismatch, Unavailable
from slipstream.discovery.endpoints import Endpoints
from slipstream.discovery.zone import Zone
from slipstream.wire.host import host_id
from slipstream.wire.mailbox import Mailbox
from slipstream.wire.proto import drafter_pb2, drafter_pb2_grpc
from slipstream.wire.transport import Server
from tests.integration.processes import free_address, until
from verifier_service.drafter_choice import DrafterChoice, Drafters
from verifier_service.drafter_link import DrafterLink
from verifier_service.rounds import Rounds
from verifier_service.telemetry import Telemetry


@pytest.fixture(autouse=True)
def _patience(monkeypatch) -> None:
    """Who answers late says how busy the machine is."""
    monkeypatch.setattr("verifier_service.drafter_choice._ASK_SECONDS", 60.0)


OURS = {"model_fingerprint": "ours", "zone": "here", "host": "another"}


class Told(drafter_pb2_grpc.DrafterServiceServicer):
    """Says what a test wants of itself; counts how often it was asked."""

    def __init__(self, **says: object) -> None:
        self.says = {**OURS, **says}
        self.asked = 0
        self.hangs = False

    async def GetDrafter(self, request, context):  # noqa: N802 gRPC's name
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        return drafter_pb2.GetDrafterResponse(**self.says)


@contextlib.asynccontextmanager
async def told(*drafters: Told) -> AsyncIterator[list[str]]:
    """Their addresses."""
    servers, addresses = [], []
    for each in drafters:
        servers.append(Server("127.0.0.1:0", ["slipstream.v1.DrafterService"]))
        drafter_pb2_grpc.add_DrafterServiceServicer_to_server(each, servers[-1].grpc)
        addresses.append(f"127.0.0.1:{await servers[-1].start()}")
    try:
        yield addresses
    finally:
        for server in servers:
            await server.stop(0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def among(addresses: list[str], *, zone: str = "here", clock=None, **how) -> DrafterChoice:
    endpoints = Endpoints(",".join(addresses), "--drafter")
    return DrafterChoice(Drafters(endpoints, "ours", Zone(zone), **how), clock or Clock())


# From the best to the worst, each for one reason.
RANKED = [
    {"host": host_id()},
    {"open_sequences": 1},
    {"open_sequences": 2},
    {"host": host_id(), "verifiers": 1},
    {"verifiers": 1},
    {"verifiers": 2, "host": host_id()},
    {"zone": "there", "host": host_id()},
    {"zone": "", "verifiers": 1},
]


async def test_the_order() -> None:
    """Zone, verifiers, host, sequences: of any two the one that is better in the first of these
    that differs, wherever it stands in the list."""
    drafters = [Told(**says) for says in RANKED]
    async with told(*drafters) as addresses:
        for better, worse in itertools.combinations(addresses, 2):
            assert await among([worse, better]).best() == better
            assert await among([better, worse]).best() == better
        assert await among(addresses[::-1]).best() == addresses[0]


async def test_who_says_no_zone_prefers_none() -> None:
    """Without --zone all zones are alike."""
    async with told(Told(zone="a", verifiers=1), Told(zone="b")) as addresses:
        assert await among(addresses, zone="").best() == addresses[1]


async def test_equals_are_spread() -> None:
    """Verifiers that see no difference do not all take the same; each always the same."""
    async with told(Told(), Told(), Told()) as addresses:
        chosen = [await among(addresses, incarnation=str(i)).best() for i in range(20)]
        assert set(chosen) == set(addresses)
        again = [await among(addresses, incarnation=str(i)).best() for i in range(20)]
        assert again == chosen


async def test_one_alone_is_not_asked() -> None:
    """With one address there is nothing to choose: it is taken, whether it answers or not."""
    address = free_address()
    choice = among([address])
    assert await choice.best() == address
    choice.failed(address, ModelMismatch("another"))
    assert await choice.best() == address
    assert not choice.several


async def test_who_does_not_answer_is_left_out(monkeypatch) -> None:
    """Nobody there, one that hangs: the one that answers is taken, however much it has to do; with
    none there is a reason."""
    hanging, busy = Told(), Told(verifiers=9)
    hanging.hangs = True
    async with told(hanging, busy) as addresses:
        choice, found = among([free_address(), *addresses]), ""
        # The hanging one is waited for as long; on a busy machine the other one needs more of it.
        for seconds in (0.3, 1.5, 7.5, 40.0):
            monkeypatch.setattr("verifier_service.drafter_choice._ASK_SECONDS", seconds)
            with contextlib.suppress(Unavailable):
                found = await choice.best()
                break
        assert found == addresses[1]
        monkeypatch.setattr("verifier_service.drafter_choice._ASK_SECONDS", 0.3)
        with pytest.raises(Unavailable, match="can be had"):
            await among([free_address(), addresses[0]]).best()


async def test_a_lost_one_comes_back_later() -> None:
    """One that was lost is not taken for some seconds while there is another, and is again after;
    one that refused for its model, much later."""
    clock, best, other = Clock(), Told(host=host_id()), Told()
    async with told(best, other) as addresses:
        choice = among(addresses, clock=clock)
        assert await choice.best() == addresses[0]
        for why, seconds in ((Unavailable("lost"), 3.0), (ModelMismatch("another"), 30.0)):
            choice.failed(addresses[0], why)
            clock.now += seconds - 0.1
            assert await choice.best() == addresses[1]
            clock.now += 0.2
            assert await choice.best() == addresses[0]
        # Both lost: either is better than none.
        for address in addresses:
            choice.failed(address, Unavailable("lost"))
        assert await choice.best() == addresses[0]


async def test_another_model_is_not_asked_again_and_again() -> None:
    """A drafter that says that it has another model is left out, and left alone for a while."""
    clock, stranger, other = Clock(), Told(model_fingerprint="theirs", host=host_id()), Told()
    async with told(stranger, other) as addresses:
        choice = among(addresses, clock=clock)
        for _ in range(3):
            assert await choice.best() == addresses[1]
        assert stranger.asked == 1
        clock.now += 31.0
        assert await choice.best() == addresses[1]
        assert stranger.asked == 2


async def test_shards_behind_the_first_are_left_alone() -> None:
    """A process without a DrafterService is asked once in half a minute, whether a drafter is there
    beside it or not; with one left there is nothing to choose, and with none a reason."""
    clock, asked = Clock(), []

    class Behind(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            asked.append(details.method)
            return await continuation(details)

    server = Server("127.0.0.1:0", ["slipstream.v1.ShardService"], [Behind()])
    shard = f"127.0.0.1:{await server.start()}"
    try:
        async with told(Told()) as (address,):
            choice = among([shard, address], clock=clock)
            for _ in range(3):
                assert await choice.best() == address
            assert len(asked) == 1
            assert not choice.several
            clock.now += 31.0
            assert await choice.best() == address
            assert len(asked) == 2
        asked.clear()
        choice = among([shard, shard.replace("127.0.0.1", "localhost")], clock=clock)
        for _ in range(3):
            with pytest.raises(Unavailable, match="only shards behind a drafter's first"):
                await choice.best()
        assert len(asked) == 2
    finally:
        await server.stop(0)


async def test_a_shard_that_is_the_only_address(caplog) -> None:
    """The link to it says once that no drafter is there, and does not try again each second."""
    caplog.set_level("INFO", "verifier_service.drafter_link")
    clock, streams = Clock(), []

    class Behind(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            streams.append(details.method)
            return await continuation(details)

    server = Server("127.0.0.1:0", ["slipstream.v1.ShardService"], [Behind()])
    shard = f"127.0.0.1:{await server.start()}"
    mailbox, rounds = Mailbox(asyncio.get_running_loop()), Rounds(Telemetry())
    link = DrafterLink(among([shard], clock=clock), drafter_pb2.Hello(), mailbox, rounds)
    running = asyncio.create_task(link.run(None))
    try:
        await until(lambda: streams)
        await asyncio.sleep(0.7)
        assert streams == ["/slipstream.v1.DrafterService/Draft"]
        clock.now += 31.0
        await until(lambda: len(streams) == 2)
    finally:
        running.cancel()
        await server.stop(0)
    said = [r.getMessage() for r in caplog.records]
    assert said == [f"no drafter at {shard}: only shards behind a drafter's first one are there"]
