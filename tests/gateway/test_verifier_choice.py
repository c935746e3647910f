"""Which verifier gets a request."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import pytest

from gateway.course import Course
from gateway.verifiers import pool as pools
from gateway.verifiers.choice import choose, key_of_most
from gateway.verifiers.served import ServedModel
from slipstream.core.errors import InvalidParameter, Overloaded, Unavailable
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.pooled import core, fake_of


class Link:
    """As much of a link as is chosen by."""

    def __init__(self, load, *, zone="", kv="", key="a"):
        self.load = load
        self.zone = zone
        self.model = ServedModel("m", "f", 10, 10, frozenset(), key, kv_address=kv, zone=zone)


def often(candidates, holder="", zone=""):
    """Places of all that are chosen in many tries."""
    found = {id(choose(candidates, holder, zone)) for _ in range(200)}
    return {place for place, one in enumerate(candidates) if id(one) in found}


def test_the_least_loaded_at_random_among_equals():
    """Estimates that are close are equal; nobody else is chosen."""
    assert often([Link(3.0), Link(0.2), Link(0.0), Link(1.0)]) == {1, 2}
    assert choose([], "", "") is None


def test_the_zone_and_the_holder_unless_clearly_loaded():
    """Nearness and keys and values are worth some requests, and no more than that."""
    far, near = Link(0.0, zone="b"), Link(4.0, zone="a", kv="k")
    assert often([far, near], zone="a") == {1}
    assert often([far, near], zone="c") == {0}
    assert often([far, near], holder="k") == {1}
    near.load = 4.5
    assert often([far, near], zone="a", holder="k") == {0}
    far.load, near.load = 100.0, 140.0
    assert often([far, near], holder="k") == {1}
    assert often([Link(0.0, zone="a"), Link(0.0, kv="k")], holder="k", zone="a") == {1}
    assert often([Link(9.0, zone="a"), Link(6.0, zone="a"), Link(5.0)], zone="a") == {1}


def test_new_requests_get_the_model_of_most():
    """One odd verifier gets nothing, and a draw changes nothing; at first the newer one wins it."""
    old, new = Link(0.0, key="old"), Link(0.0, key="new")
    seen = ["old", "new"]
    assert key_of_most([old, old, new], "new", seen) == "old"
    assert key_of_most([old, new], "old", seen) == "old"
    assert key_of_most([old, new], "new", seen) == "new"
    assert key_of_most([old, new, new], "old", seen) == "new"
    assert key_of_most([old, new], "gone", seen) == "new"
    assert key_of_most([], "old", seen) == ""


async def test_load_is_what_we_sent_and_what_others_did(tokenizer):
    """Our own calls count at once; what a verifier says of others', and of its queue, does too."""
    hanging = FakeBehaviour([5, 6, 7], hang_after=1)
    # What they said fades within that time.
    async with core(tokenizer, hanging, [{}, {}, {}], lost_after=600.0) as made:
        made.fakes[0].waiting = 3
        made.fakes[1].expected_wait = 1.0
        await made.tell()
        running = [asyncio.create_task(made.tokens()) for _ in range(6)]
        async with asyncio.timeout(20):
            while sum(made.requests()) < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        third = made.requests()[2]
        assert made.requests()[1] == 0
        assert third in (4, 5)
        await made.tell()
        # Our own calls are among those that it counts, and are not taken twice.
        loads = [link.load for link in made.pool._links.values()]
        assert loads[0] == pytest.approx(9 - third, abs=0.2)
        assert loads[2] == pytest.approx(third, abs=0.2)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_the_holder_of_keys_and_values(tokenizer):
    """It serves where it can; else who does is told whom to ask. Who served is told, too."""
    async with core(tokenizer) as made:
        first, second = made.fakes
        for _ in range(6):
            course = Course(kv_holder="kv:1")
            await made.tokens(course)
            assert course.kv_holder == "kv:1"
        assert made.requests() == [0, 6]
        assert {request.kv_holder for request in second.requests} == {""}
        second.waiting = 50
        await made.tell()
        await made.tokens(course)
        assert first.requests[0].kv_holder == "kv:1"
        assert course.kv_holder == "kv:0"
        second.waiting = 0
        await second.drain()
        await made.until_states(serving=1, draining=1)
        await made.tokens(Course(kv_holder="kv:1"))
        assert first.requests[1].kv_holder == "kv:1"
        # Of one that nobody knows it is for the verifier to find out.
        await made.tokens(Course(kv_holder="elsewhere:1"))
        assert first.requests[2].kv_holder == "elsewhere:1"


async def test_the_zone(tokenizer):
    """Verifiers of the gateway's zone get its requests, up to a point."""
    async with core(tokenizer, fakes=[{"zone": "a"}, {"zone": "b"}], zone="b") as made:
        for _ in range(6):
            await made.tokens()
        assert made.requests() == [0, 6]
        made.fakes[1].waiting = 50
        await made.tell()
        await made.tokens()
        assert made.requests() == [1, 6]
        assert {one.zone for one in (await made.pool.readiness()).verifiers} == {"a", "b"}


async def test_overloaded_here_and_not_there(tokenizer):
    """A request that one refuses for load goes to another, as new; each is asked once."""
    async with core(tokenizer, fakes=[{}, {}, {}]) as made:
        full = [FakeBehaviour([5], error=Overloaded("full", retry_after=3.0 + i)) for i in range(3)]
        for fake, behaviour in zip(made.fakes[:2], full, strict=False):
            fake.behaviour = behaviour
        for _ in range(8):
            assert await made.tokens() == [5, 6, 7]
        sent = made.fakes[2].requests
        assert len(sent) == 8
        assert not any(request.resumed for request in sent)
        assert any(made.requests()[:2])
        for fake, behaviour in zip(made.fakes, random.sample(full, 3), strict=True):
            fake.behaviour = behaviour
            fake.requests.clear()
        with pytest.raises(Overloaded) as raised:
            await made.tokens()
        assert made.requests() == [1, 1, 1]
        assert raised.value.retry_after == 3.0
        assert not any(made.metrics.failovers.values())


async def test_faults_of_the_request_stay_with_it(tokenizer):
    """What is wrong with a request is told at once, by the one verifier that was asked."""
    bad = FakeBehaviour([5, 6, 7], error=InvalidParameter("odd", param="top_k"), error_after=1)
    async with core(tokenizer, bad) as made:
        with pytest.raises(InvalidParameter):
            await made.tokens()
        assert sum(made.requests()) == 1


async def test_verifiers_of_another_model(tokenizer):
    """They get nothing that others began, and nothing new while more serve the other model."""
    fakes = [{}, {}, {"dtype": "float32", "fingerprint": "g", "context_length": 100}]
    async with core(tokenizer, fakes=fakes, failover=0.3) as made:
        await made.until_states(serving=2, other_model=1)
        [other] = [one for one in (await made.pool.readiness()).verifiers if one.detail]
        assert (other.address, other.state) == (made.fakes[2].address, "other model")
        assert "g/float32" in other.detail
        assert made.pool.model().context_length == 256
        behaviour = FakeBehaviour([5, 6, 7], hang_after=1)
        for fake in made.fakes:
            fake.behaviour = behaviour
        course = Course()
        pieces = made.pieces(course)
        assert (await anext(pieces)).completion_tokens == 1
        assert course.model_key == made.pool.model().key
        for fake in made.fakes[:2]:
            await fake.stop()
        with pytest.raises(Unavailable):
            await anext(pieces)
        assert made.requests()[2] == 0
        await made.until_states(serving=1, lost=2)
        made.fakes[2].behaviour = FakeBehaviour([8, 9])
        assert await made.tokens() == [8, 9]
        with pytest.raises(Unavailable, match="model"):
            await made.tokens(course)


async def test_windows_of_different_length(tokenizer):
    """Where verifiers of one model have different windows, the shortest holds: any may go on."""
    async with core(tokenizer, fakes=[{}, {"context_length": 64}]) as made:
        assert made.pool.model().context_length == 64


async def test_names_that_move(tokenizer, monkeypatch):
    """What DNS no longer has gets nothing new, ends what it runs, and is forgotten; what is new
    there is used."""
    monkeypatch.setattr(pools, "_RESOLVE_SECONDS", 0.05)
    monkeypatch.setattr(pools, "_RESOLVE_SOON_SECONDS", 0.05)
    ports = {}

    async def look(host, port, **_):
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", ports[host]))] if host in ports else []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look, raising=False)
    slow = FakeBehaviour([5, 6, 7, 8], delay=0.05)
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(
            core(tokenizer, fakes=[], spec="dns:///one:1,dns:///two:1")
        )
        assert (await made.pool.readiness()).missing
        for place in range(2):
            fake = fake_of(place, slow, {})
            await stack.enter_async_context(fake)
            made.fakes.append(fake)
        first, second = made.fakes
        ports["one"] = int(first.address.rpartition(":")[2])
        await made.until_states(serving=1)
        pieces = made.pieces()
        await anext(pieces)
        del ports["one"]
        ports["two"] = int(second.address.rpartition(":")[2])
        await made.until_states(serving=1, draining=1)
        assert await made.tokens() == [5, 6, 7, 8]
        assert made.requests() == [1, 1]
        assert sum([len(piece.tokens) async for piece in pieces]) == 3
        assert made.requests() == [1, 1]
        await made.until_states(serving=1)
