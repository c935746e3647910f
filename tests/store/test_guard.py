"""Deadlines and the circuit breaker, over a store that does what the test says."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time

import pytest

from slipstream.core.errors import StoreUnavailable
from slipstream.store import (
    Append,
    Document,
    Fenced,
    GuardedStore,
    IndexFull,
    MemoryStore,
    VersionConflict,
)
from slipstream.store.sqlite import SqliteStore
from tests.store.waiting import eventually, patiently

LONG = 60.0


class Moody(MemoryStore):
    """`mood` is what becomes of a call: nothing special, an error, or an event to wait for."""

    def __init__(self):
        super().__init__()
        self.mood = None
        self.asked = 0
        self.stubborn = False
        self.pings = []

    async def feel(self):
        self.asked += 1
        if isinstance(self.mood, Exception):
            raise self.mood
        if isinstance(self.mood, asyncio.Event):
            try:
                await self.mood.wait()
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise
                await asyncio.sleep(20)

    async def get(self, key):
        await self.feel()
        return await super().get(key)

    async def put(self, key, value, *, ttl, expect=None):
        await self.feel()
        return await super().put(key, value, ttl=ttl, expect=expect)

    async def ping(self):
        self.pings.append(asyncio.get_running_loop().time())
        await self.feel()


@pytest.fixture
def moody():
    return Moody()


@pytest.fixture
async def guard(moody):
    guard = GuardedStore(moody, 0.05, probe=0.01, probe_most=0.05, watch=0.05)
    yield guard
    await guard.close()


async def failing(guard, times):
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            await guard.get("k")


async def test_every_operation_passes_through(guard):
    """A guarded store answers as the store does, and counts its calls and times them."""
    heard = []
    guard = GuardedStore(MemoryStore(), on_call=lambda *sample: heard.append(sample))
    assert await guard.put("k", b"v", ttl=LONG, expect=0) == 1
    assert await guard.get("k") == Document(b"v", 1)
    with pytest.raises(VersionConflict):
        await guard.delete("k", expect=3)
    assert await guard.delete("k")
    await guard.log_open("l", 1, ttl=LONG)
    with pytest.raises(Fenced):
        await guard.log_open("l", 1, ttl=LONG)
    assert await guard.log_append([Append("l", 1, 0, 1, b"x", False, LONG)]) == ["ok"]
    assert (await guard.log_read("l", 0)).entries == ((0, b"x"),)
    await guard.log_delete("l")
    await guard.index_add("i", "m", ttl=LONG)
    with pytest.raises(IndexFull):
        await guard.index_add("i", "n", ttl=LONG, most=1)
    assert await guard.index_list("i", "", 5) == ["m"]
    await guard.index_remove("i", "m")
    await guard.ping()
    assert guard.calls == {
        ("put", "ok"): 1, ("get", "ok"): 1, ("delete", "conflict"): 1, ("delete", "ok"): 1,
        ("log_open", "ok"): 1, ("log_open", "conflict"): 1, ("log_append", "ok"): 1,
        ("log_read", "ok"): 1, ("log_delete", "ok"): 1, ("index_add", "ok"): 1,
        ("index_add", "conflict"): 1, ("index_list", "ok"): 1, ("index_remove", "ok"): 1,
        ("ping", "ok"): 1,
    }  # fmt: skip
    assert len(heard) == 14
    assert guard.answer_seconds == heard[-1][2]
    assert all(0 <= seconds < 60 for _, _, seconds in heard)
    assert (guard.state, guard.detail, guard.degraded_seconds) == ("ok", "", 0)
    await guard.close()


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_call_ends_at_its_deadline(guard, moody, stubborn):
    """A call that is not answered in time fails then, even where the store will not be stopped."""
    moody.mood, moody.stubborn = asyncio.Event(), stubborn
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="within 0.05 s"):
        await guard.get("k")
    assert 0.05 <= time.monotonic() - began < 10
    assert guard.calls == {("get", "timeout"): 1}


async def test_the_breaker_opens_and_closes(guard, moody, caplog):
    """Failures in a row open it: calls then do not reach the store, until a ping works. The log
    has each change once."""
    await guard.start()
    moody.mood = StoreUnavailable("it burns")
    with caplog.at_level(logging.WARNING):
        await failing(guard, 3)
        assert (guard.state, guard.detail) == ("degraded", "it burns")
        moody.mood = asyncio.Event()
        # A ping may have opened it before the last of the calls.
        asked, refusals = moody.asked, guard.calls["get", "refused"]
        with pytest.raises(StoreUnavailable) as refused:
            await guard.get("k")
        # Clients are told the first, operators the second, too.
        assert refused.value.message == "the session store is unavailable; try again soon"
        assert refused.value.inner == "it burns"
        assert moody.asked == asked
        assert guard.calls["get", "refused"] == refusals + 1
        await eventually(lambda: "no answer" in guard.detail)
        assert guard.degraded_seconds > 0
        moody.mood = None
        await eventually(lambda: guard.state == "ok")
    assert await guard.get("k") is None
    assert (guard.detail, guard.degraded_seconds) == ("", 0)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert "unavailable and will be probed: it burns" in messages[0]
    assert "is back after" in messages[1]


async def test_only_failures_in_a_row_count(guard, moody):
    """Answers, also conflicts, between failures keep the breaker closed."""
    for answer in (guard.get("k"), guard.put("k", b"v", ttl=LONG, expect=5)):
        moody.mood = StoreUnavailable("x")
        await failing(guard, 2)
        moody.mood = None
        await asyncio.gather(answer, return_exceptions=True)
    moody.mood = StoreUnavailable("x")
    await failing(guard, 2)
    assert guard.state == "ok"
    await failing(guard, 1)
    assert guard.state == "degraded"


async def test_probes_become_rarer(guard, moody):
    """The pauses between pings of an open breaker grow up to their bound."""
    moody.mood = StoreUnavailable("x")
    await guard.start()
    assert guard.state == "degraded"
    await eventually(lambda: len(moody.pings) >= 7)
    pauses = [b - a for a, b in zip(moody.pings, moody.pings[1:], strict=False)]
    assert pauses[0] >= 0.008
    assert pauses[-1] >= 0.04
    assert min(pauses[3:]) >= 0.04


async def test_down_at_the_start(guard, moody):
    """A store that is down when the guard starts is known as degraded at once, and comes back."""
    moody.mood = StoreUnavailable("not there")
    await guard.start()
    assert (guard.state, guard.detail) == ("degraded", "not there")
    moody.mood = None
    await eventually(lambda: guard.state == "ok")


async def test_trouble_shows_without_calls(guard, moody):
    """While nobody calls, pings find that the store is gone."""
    await guard.start()
    moody.mood = StoreUnavailable("gone")
    await eventually(lambda: guard.state == "degraded")
    assert set(guard.calls) == {("ping", "ok"), ("ping", "unavailable")}


async def test_old_calls_say_nothing_about_now(guard, moody):
    """A call that began before the breaker opened does not count when it fails after it closed."""
    await guard.start()
    moody.mood = asyncio.Event()
    old = [asyncio.ensure_future(guard.get("k")) for _ in range(5)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    moody.mood = StoreUnavailable("x")
    await failing(guard, 3)
    moody.mood = None
    await eventually(lambda: guard.state == "ok")
    found = await asyncio.gather(*old, return_exceptions=True)
    assert all(isinstance(failure, StoreUnavailable) for failure in found)
    assert guard.state == "ok"
    assert await guard.get("k") is None


async def test_a_caller_that_gives_up(moody):
    """A cancelled call stops at the store, too, and is no failure of it."""
    guard = GuardedStore(moody, LONG)
    moody.mood = asyncio.Event()
    for _ in range(5):
        call = asyncio.ensure_future(guard.get("k"))
        await eventually(lambda: moody.asked)
        moody.asked = 0
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert guard.state == "ok"
    assert guard.calls == {("get", "cancelled"): 5}


async def test_a_held_up_event_loop_is_no_fault_of_the_store(guard, moody):
    """Answers that came while the event loop was busy are taken, though the deadline is over."""
    loop = asyncio.get_running_loop()
    moody.mood = gate = asyncio.Event()
    calls = [asyncio.ensure_future(guard.get("k")) for _ in range(5)]
    await asyncio.sleep(0)
    # The answer, as from a socket, takes some turns of the loop to get to the call.
    loop.call_soon(loop.call_soon, gate.set)
    time.sleep(0.3)  # noqa: ASYNC251 (it is what holds the loop up)
    assert await asyncio.gather(*calls) == [None] * 5


async def test_closing_does_not_wait_for_ever(moody, monkeypatch):
    """A store that does not close is left behind."""
    monkeypatch.setattr("slipstream.store.guard._CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(moody, "close", asyncio.Event().wait)
    guard = GuardedStore(moody)
    await guard.start()
    async with asyncio.timeout(20):
        await guard.close()


async def test_a_file_that_is_held(tmp_path):
    """Calls to a file that another process holds fail in time, open the breaker, and write nothing
    afterwards; when it is free the store is back."""
    path = tmp_path / "store.db"
    guard = GuardedStore(SqliteStore(path, busy_timeout=30), 0.1, probe=0.02, probe_most=0.1)
    await guard.start()
    await eventually(lambda: guard.state == "ok")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for number in range(4):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await guard.put(f"k{number}", b"v", ttl=LONG)
        assert time.monotonic() - began < 10
    assert guard.state == "degraded"
    other.execute("ROLLBACK")
    other.close()
    await eventually(lambda: guard.state == "ok")
    assert [await patiently(guard.get, f"k{number}") for number in range(4)] == [None] * 4
    await guard.close()
