"""How many generations are kept for one API key."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from slipstream.core.errors import InvalidRequest
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.kept import TroubledStore, events_of, substance
from tests.telemetry.scraped import values_of

WORDS = "Hello, world! Stop here and there."
REFUSING = FakeBehaviour([5], first_delay=0.1, error=InvalidRequest("no"))


@pytest.fixture
def store():
    return TroubledStore()


@pytest.fixture
async def rig(make_rig, ids, store):
    # However busy the machine is, a stream waits for its record.
    settings = {"max_generations_per_key": 2, "log_ttl": 60, "store_timeout": 20.0}
    async with make_rig(ids(WORDS), store=store, **settings) as made:
        yield made


async def post(rig, key=None, **fields):
    body = {"model": "tiny-chat", "prompt": "x", **fields}
    headers = {} if key is None else {"Idempotency-Key": key}
    return await rig.http.post("/v1/completions", json=body, headers=headers)


async def stream(rig):
    """The id of a whole answer, and whether it can be resumed."""
    answer = await post(rig, stream=True)
    events = events_of(answer.text)
    assert substance(events)["choices"][0]["text"] == WORDS
    kept = answer.headers["x-slipstream-resumable"] == "yes"
    assert all((event.id is not None) == kept for event in events[:-1])
    return events[0].data["id"], kept


def names(store):
    return sorted([*store._documents, *store._logs])


async def test_one_too_many_is_not_kept(rig, store, eventually):
    """With as many kept as may be, ended ones included, a stream is served but cannot be resumed,
    and what must be kept is refused; nothing of either stays. One that is deleted makes room."""
    first, kept = await stream(rig)
    assert kept
    assert (await post(rig, key="k")).status_code == 200
    there = names(store)
    _, kept = await stream(rig)
    assert not kept
    for fields in ({"key": "other"}, {"background": True}, {"background": True, "key": "b"}):
        answer = await post(rig, **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "too_many_generations")
        assert "may be 2 (--max-generations-per-key)" in error["message"]
        seconds = 7200 if "background" in fields else 120
        assert f"for {seconds} s at most" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
    # What they may leave is how they ended, for who has joined by the key.
    await eventually(lambda: [n for n in names(store) if not n.endswith("/end")] == there)
    assert (await post(rig, key="k")).json()["choices"][0]["text"] == WORDS
    values = values_of((await rig.http.get("/metrics")).text)
    assert values["slipstream:streams_unkept_total"] == 1
    assert values['slipstream:requests_refused_total{bound="generations"}'] == 3
    assert values['slipstream:request_errors_total{code="too_many_generations"}'] == 3
    await rig.http.delete(f"/v1/generations/{first}")
    assert (await post(rig, key="other")).status_code == 200


async def test_who_has_joined_it_is_told(rig, store):
    """Others may wait for one that is refused, by its key: that it failed stays in the store,
    however late what stood there before is removed."""
    for _ in range(2):
        await stream(rig)
    failed, guarded = asyncio.Event(), store.guarded

    async def late(name, *args, **kwargs):
        ended = str(args[0]).endswith("/end")
        if ended and name == "delete":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await failed.wait()
        result = await guarded(name, *args, **kwargs)
        if ended and name == "put":
            failed.set()
        return result

    store.guarded = late
    assert (await post(rig, key="k")).status_code == 429
    assert failed.is_set()
    assert [name for name in names(store) if name.endswith("/end")]


async def test_what_makes_room(rig, ids, store, eventually):
    """One that the verifier refused leaves its place, and so does one that has expired; one that
    runs for long keeps it."""
    behaviour, rig.fake.behaviour = rig.fake.behaviour, REFUSING
    for _ in range(3):
        assert (await post(rig, stream=True)).status_code == 400
    await eventually(lambda: store._indexes["generations/"] == {})
    assert store.calls["index_add"] == 3
    rig.fake.behaviour = FakeBehaviour(ids(WORDS), hang_after=5)
    running = asyncio.create_task(post(rig, stream=True))
    keeper = rig.running.kept.runs.keeper
    await eventually(lambda: [run for run in keeper.active if run.opened])
    (run,) = keeper.active
    await store.index_add("generations/", run.id, ttl=0.001)
    await keeper.records.renew(run.id)
    await store.index_add("generations/", "other", ttl=60.0)
    rig.fake.behaviour = behaviour
    assert (await post(rig, key="k")).status_code == 429
    await store.index_add("generations/", "other", ttl=0.001)
    await eventually(lambda: "other" not in store._living("generations/"))
    assert (await post(rig, key="k")).status_code == 200
    assert (await post(rig, key="l")).status_code == 429
    running.cancel()


async def test_many_at_once(rig, store, eventually):
    """Of many that begin at one moment, as many are kept as may be, and no more."""
    kept = [kept for _, kept in await asyncio.gather(*(stream(rig) for _ in range(12)))]
    assert kept.count(True) == 2
    await eventually(lambda: len(names(store)) == 2 * len(["a record", "a log"]))


async def test_no_bound(make_rig, ids, store):
    """0 is none, and keeps no list."""
    settings = {"max_generations_per_key": 0, "store_timeout": 20.0}
    async with make_rig(ids(WORDS), store=store, **settings) as rig:
        assert [(await stream(rig))[1] for _ in range(3)] == [True] * 3
    assert "index_add" not in store.calls
