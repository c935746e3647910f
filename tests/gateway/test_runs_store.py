"""Streams over a store in its bad times: never late, never wrong, never a token twice."""

from __future__ import annotations

import asyncio

import pytest

from gateway.runs import journal
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.kept import TroubledStore, events_of, substance
from tests.telemetry.scraped import values_of

WORDS = "Hello, world! Stop here and there."


@pytest.fixture
def store():
    return TroubledStore()


async def resumed(rig, event_id, name):
    headers = {} if event_id is None else {"Last-Event-ID": event_id}
    return await rig.http.get(f"/v1/generations/{name}/events", headers=headers)


@pytest.mark.parametrize("trouble", ["down", "hang", "lost", "slow"])
@pytest.mark.parametrize("name", ["put", "log_open", "log_append"])
async def test_a_stream_at_each_step(make_rig, ids, store, eventually, trouble, name):
    """Whatever call fails, and however, the stream is whole and soon there; what was promised to
    be resumable is, as soon as the store is back."""
    words = ids(WORDS)
    async with make_rig(FakeBehaviour(words, delay=0.003), store=store) as rig:
        store.trouble = {name: trouble}
        async with asyncio.timeout(20):
            answer = await rig.complete("x", stream=True, seed=3, n=2)
        events = events_of(answer.text)
        told = substance(events)
        assert [choice["text"] for choice in told["choices"].values()] == [WORDS] * 2
        kept = answer.headers["x-slipstream-resumable"] == "yes"
        assert kept == (name == "log_append" or trouble == "slow")
        assert all((event.id is not None) == kept for event in events[:-1])
        store.trouble = {}
        request_id = events[0].data["id"]
        for place in (3, 9) if kept else ():
            rest = await resumed(rig, events[place].id, request_id)
            assert substance(events_of(rest.text))["choices"].keys() <= {0, 1}
            whole = substance([*events[: place + 1], *events_of(rest.text)])
            assert whole["choices"] == told["choices"]
            assert whole["usage"] == told["usage"]
        if not kept:
            # Maybe the record is there all the same: then the tokens are the same, too.
            rest = await resumed(rig, None, request_id)
            assert rest.status_code in (200, 404)
            if rest.status_code == 200:
                assert substance(events_of(rest.text))["choices"] == told["choices"]


@pytest.mark.parametrize("trouble", ["down", "hang"])
async def test_who_comes_back_to_a_store_that_is_not_there(make_rig, ids, store, trouble):
    """Without its record nobody knows the stream: 503, in time, and another try is worth it. With
    it, everything else is computed again."""
    async with make_rig(ids(WORDS), store=store) as rig:
        whole = events_of((await rig.complete("x", stream=True)).text)
        name = whole[0].data["id"]
        store.all_calls(trouble)
        async with asyncio.timeout(20):
            answer = await resumed(rig, whole[2].id, name)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"]
        for method, path in (("GET", ""), ("DELETE", "")):
            answer = await rig.http.request(method, f"/v1/generations/{name}{path}")
            assert answer.status_code == 503
        del store.trouble["get"]
        async with asyncio.timeout(20):
            answer = await resumed(rig, whole[2].id, name)
        assert substance(events_of(answer.text))["choices"] == substance(whole[3:])["choices"]


async def test_a_stream_outlives_the_store_s_memory(make_rig, ids, store, eventually, monkeypatch):
    """A store that comes back empty ends no stream: it is only not kept any more."""
    monkeypatch.setattr(journal, "BEAT_SECONDS", 0.05)
    async with make_rig(FakeBehaviour(ids(WORDS), delay=0.02), store=store) as rig:
        answer = asyncio.create_task(rig.complete("x", stream=True))
        await eventually(lambda: any(log.length for log in store._logs.values()))
        store._logs.clear()
        store._documents.clear()
        found = substance(events_of((await answer).text))
        assert (found["choices"][0]["text"], found["done"]) == (WORDS, 1)
        assert store._logs == {}


async def test_a_log_that_was_dropped(make_rig, ids, store, monkeypatch):
    """A store that is too slow for too long costs the log, which is counted, and not the client:
    what it lacks is computed again."""
    small = journal.Bounds(log_bytes=100)
    monkeypatch.setattr(journal, "Bounds", lambda: small)
    words = ids(WORDS) * 2
    async with make_rig(FakeBehaviour(words, delay=0.03), store=store) as rig:
        store.trouble = {"log_append": "hang"}
        whole = events_of((await rig.complete("x", stream=True, max_tokens=99)).text)
        store.trouble = {}
        values = values_of((await rig.http.get("/metrics")).text)
        assert values['slipstream:journal_dropped_logs_total{reason="full"}'] == 1
        assert values["slipstream:journal_pending_bytes"] == 0
        rest = await resumed(rig, whole[7].id, whole[0].data["id"])
        assert substance(events_of(rest.text))["choices"] == substance(whole[8:])["choices"]
        assert len(rig.fake.requests) == 2
        again = await resumed(rig, whole[7].id, whole[0].data["id"])
        assert len(rig.fake.requests) == 2, "now the log has all of it"
        assert substance(events_of(again.text)) == substance(events_of(rest.text))


async def test_a_gateway_tells_what_waits(make_rig, ids, store, eventually):
    """Bytes, and for how long the oldest have waited."""
    async with make_rig(FakeBehaviour(ids(WORDS), hang_after=5), store=store) as rig:
        store.trouble = {"log_append": "down"}
        answer = asyncio.create_task(rig.complete("x", stream=True))
        await eventually(lambda: rig.fake.sent.total() == 5)
        await asyncio.sleep(0.1)
        values = values_of((await rig.http.get("/metrics")).text)
        assert values["slipstream:journal_pending_bytes"] > 5
        assert values["slipstream:journal_lag_seconds"] >= 0.05
        answer.cancel()


async def test_records_outlive_their_logs(make_rig, ids, store, eventually):
    """One that runs for longer than records are kept is renewed, unless its client deleted it."""
    async with make_rig(FakeBehaviour(ids(WORDS), hang_after=5), store=store, log_ttl=10) as rig:
        answers = [asyncio.create_task(rig.complete("x", stream=True)) for _ in range(2)]
        runs = rig.running.kept.runs.keeper.active
        await eventually(lambda: sum(run.opened for run in runs) == 2)
        first, second = runs
        key = f"gen/{first.id}"
        _, before = store._documents[key]
        await store.put(f"gen/{second.id}", b"", ttl=60.0)
        for run in runs:
            run.renewed -= 6.0
        await eventually(lambda: store._documents[key][1] > before)
        assert (await store.get(f"gen/{second.id}")).value == b""
        for answer in answers:
            answer.cancel()
