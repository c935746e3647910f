"""How many sessions one API key may have."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import openai
import pytest

from gateway import keys
from gateway.sessions.turn import Turn
from slipstream.core.errors import SessionConflict, TooManySessions
from slipstream.store import MemoryStore
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.gateway.conversing import Clock, FaultyStore, say, sessions_at, text_turn
from tests.telemetry.scraped import values_of


@pytest.fixture
def clock():
    return Clock()


async def ids(sessions, owner="me") -> list[str]:
    return [each.id for each in (await sessions.list(owner))[0]]


async def test_a_session_too_many_is_not_made(clock):
    """With as many sessions as may be none is created, forked or begun by a turn, nothing is left
    of the attempt, and those that are there go on; another key has its own."""
    store = MemoryStore(clock)
    sessions = sessions_at(clock, store, most=2)
    await sessions.create("me", "a")
    await say(sessions, "b", 0, "q", "a")
    there = dict(store._documents)
    for attempt in (
        sessions.create("me", "c"),
        sessions.fork("me", "b", 1, "c"),
        say(sessions, "c", 0, "q", "a"),
    ):
        with pytest.raises(TooManySessions, match=r"may have 2 \(--max-.*'c'.*DELETE.*ttl"):
            await attempt
    await sessions.close()
    assert store._documents == there
    assert await ids(sessions) == ["a", "b"]
    assert sessions.desk.refused == {"sessions": 3}
    with pytest.raises(SessionConflict, match="already"):
        await sessions.create("me", "a")
    for session_id, count in (("a", 0), ("b", 1)):
        assert (await say(sessions, session_id, count, "q", "a"))[1].stored
    await sessions.create("you", "c")


async def test_what_makes_room(clock):
    """One that is deleted, has expired, or was only begun by a turn that failed, makes room at
    once; so does the end of a process that was about to write one, soon."""
    store = MemoryStore(clock)
    sessions = sessions_at(clock, store, most=1)
    await sessions.create("me", "deleted")
    await sessions.delete("me", "deleted")
    await sessions.create("me", "short", ttl=30.0)
    clock.now += 31
    opened = await sessions.open("me", "failed", 0)
    with pytest.raises(ZeroDivisionError):
        async with Turn(sessions.desk, opened, "r"):
            1 / 0  # noqa: B018
    # As where the process ends, or the store fails, between the place and the document.
    store.put, put = None, store.put
    with pytest.raises(TypeError):
        await sessions.create("me", "unwritten")
    with pytest.raises(TooManySessions):
        await sessions.create("me", "next")
    clock.now += 21
    with pytest.raises(TypeError):
        async with Turn(sessions.desk, await sessions.open("me", "killed", 0), "r"):
            pass
    store.put = put
    with pytest.raises(TooManySessions):
        await sessions.create("me", "last")
    clock.now += 21
    await sessions.create("me", "last")


class Ceding(MemoryStore):
    """Before each call others have their turn, as with a store over a network."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or not asyncio.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return await found(*args, **kwargs)

        return call


async def test_several_gateways_make_no_more_than_may_be(clock):
    """Of many that are created and begun at once, at two gateways, exactly as many come to be as
    may, at every moment."""
    store = Ceding(clock)
    pair = [sessions_at(clock, store, most=5) for _ in range(2)]
    most = 0

    async def watch():
        nonlocal most
        while True:
            written = [value for value, _ in store._documents.values() if value.value]
            most = max(most, len(written))
            await asyncio.sleep(0)

    def make(number):
        sessions, name = pair[number % 2], f"s{number:02}"
        return sessions.create("me", name) if number % 3 else say(sessions, name, 0, "q", "a")

    watching = asyncio.create_task(watch())
    found = await asyncio.gather(*map(make, range(24)), return_exceptions=True)
    watching.cancel()
    refused = [each for each in found if isinstance(each, TooManySessions)]
    assert (len(refused), len(await ids(pair[0])), most) == (19, 5, 5)


async def test_a_turn_that_goes_on_is_answered_all_the_same(clock):
    """A first turn that was begun before, elsewhere, is not refused for want of room: its client
    has part of it already. It is not stored, and says why. So it is where the store failed when
    the turn began, and has no room in the end."""
    store = FaultyStore(MemoryStore(clock), {})
    sessions = sessions_at(clock, store, most=1)
    states = []
    # At the read, at the place, at the claim.
    for fault in range(3):
        store.faults = {store.calls + fault: "before"}
        late = await sessions.open("me", "late", 0)
        async with Turn(sessions.desk, late, "r") as turn:
            await asyncio.sleep(0)
            clock.now += 21
            await sessions.create("me", "other")
            states.append(await turn.commit(text_turn("q", "a"), "text"))
        await sessions.delete("me", "other")
    await sessions.create("me", "other")
    opened = await sessions.resume("me", "resumed", 0, "r")
    async with Turn(sessions.desk, opened, "r") as turn:
        states.append(await turn.commit(text_turn("q", "a"), "text"))
    for state in states:
        assert not state.stored
        assert "without memory: there are 1 sessions" in state.detail
    assert await ids(sessions) == ["other"]


async def test_a_long_turn_keeps_its_place():
    """The place of a session whose own time is shorter than its turn is renewed with it, also where
    the first attempt to list it failed."""
    clock = Clock()
    store = FaultyStore(MemoryStore(clock), {})
    # A read, a place, the claim, and then what may fail.
    store.faults = {3: "before"}
    sessions = sessions_at(clock, store, claim=0.02, most=1, ttl=0.01)
    async with sessions.turn("me", "s", 0, "long"):
        for _ in range(20):
            seen = store.calls
            async with asyncio.timeout(20):
                while store.calls < seen + 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            clock.now += 0.015
            assert await ids(sessions) == ["s"]
            with pytest.raises(TooManySessions):
                await sessions.create("me", "other")


async def test_without_a_bound(clock):
    """0 is none: sessions are made beyond any number."""
    sessions = sessions_at(clock, most=0)
    for name in "abc":
        await sessions.create("me", name)
    assert (await say(sessions, "d", 0, "q", "a"))[1].stored
    assert await ids(sessions) == ["a", "b", "c", "d"]


async def test_deleted_as_its_turn_ends(clock):
    """A session that is deleted between the end of its turn and what is done behind that takes no
    place any more; where the list alone was lost, it is listed again."""
    store = MemoryStore(clock)
    sessions = sessions_at(clock, store, most=1)
    for session_id in ("created", "begun"):
        if session_id == "created":
            await sessions.create("me", session_id)
        async with sessions.turn("me", session_id, 0, "r") as turn:
            assert (await turn.commit(text_turn("q", "a"), "text")).stored
            await sessions.delete("me", session_id)
        await sessions.close()
        assert store._indexes["sessions/me"] == {}
    await say(sessions, "s", 0, "q", "a")
    store._indexes.clear()
    await say(sessions, "s", 1, "q", "a")
    await sessions.close()
    assert await ids(sessions) == ["s"]


async def test_refusals_at_both_doors(make_rig, tmp_path):
    """429 that says what to do, and that another try is not worth it, streaming or not; over gRPC
    RESOURCE_EXHAUSTED. OpenAI's client does not try again. Each key has a bound of its own."""
    key, other = (keys.add(name, tmp_path / "keys") for name in ("one", "other"))
    async with make_rig(api_keys=tmp_path / "keys", max_sessions_per_key=1) as rig:
        rig.http.headers["Authorization"] = f"Bearer {key}"
        assert (await rig.chat(session_id="a", session_turn=0)).status_code == 200
        turn = {"session_id": "b", "session_turn": 0}
        for response in (
            await rig.http.post("/v1/sessions", json={}),
            await rig.http.post("/v1/sessions/a/fork", json={}),
            await rig.chat(**turn),
            await rig.chat(**turn, stream=True),
        ):
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (429, "too_many_sessions")
            assert error["type"] == "insufficient_quota"
            assert "--max-sessions-per-key" in error["message"]
            assert response.headers["x-should-retry"] == "false"
            assert "retry-after" not in response.headers
        async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key=key) as client:
            with pytest.raises(openai.RateLimitError, match="may have 1"):
                await client.completions.create(model="tiny-chat", prompt="x", extra_body=turn)
        async with channel(rig.grpc_address) as link:
            stub = gateway_pb2_grpc.GatewayServiceStub(link)
            request = gateway_pb2.CreateSessionRequest(id="b")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CreateSession(request, metadata=[("authorization", f"Bearer {key}")])
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert isinstance(error_of(caught.value), TooManySessions)
            await stub.CreateSession(request, metadata=[("authorization", f"Bearer {other}")])
        values = values_of((await rig.http.get("/metrics")).text)
        assert values['slipstream:requests_refused_total{bound="sessions"}'] == 6
        assert len(rig.fake.requests) == 1
        await rig.http.delete("/v1/sessions/a")
        assert (await rig.chat(**turn)).json()["session"]["stored"]
