"""Generations that nobody waits for."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway import keys
from gateway.runs import background, journal
from slipstream.core.errors import InvalidParameter, Overloaded, Unavailable
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.conversing import Clock
from tests.gateway.kept import TroubledStore, events_of, substance
from tests.telemetry.scraped import values_of

WORDS = "Hello, world! Stop here and there."


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(background, "SWEEP_SECONDS", 0.1)
    # A busy machine's pauses make no orphans.
    monkeypatch.setattr(background, "ORPHAN_SECONDS", 3600.0)
    monkeypatch.setattr(background, "_FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(background, "_LAST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(journal, "BEAT_SECONDS", 0.1)


@pytest.fixture
def store():
    return TroubledStore()


async def begin(rig, headers=(), **fields):
    body = {"model": "tiny-chat", "prompt": "x", "background": True, **fields}
    return await rig.http.post("/v1/completions", json=body, headers=dict(headers))


async def begun(rig, **fields):
    answer = await begin(rig, **fields)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert (told["object"], told["status"]) == ("generation", "in_progress")
    return told["id"]


async def fetch(rig, name, headers=()):
    return (await rig.http.get(f"/v1/generations/{name}", headers=dict(headers))).json()


async def until(rig, name, status):
    async with asyncio.timeout(20):
        while (told := await fetch(rig, name))["status"] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return told


async def test_start_leave_fetch(make_rig, ids, eventually, store):
    """The answer can be fetched from any gateway: what there is of it, then the body that a
    waiting client would have got; nothing runs or is listed any more."""
    async with make_rig(store=store) as one, make_rig(store=store) as two:
        words = ids(WORDS)
        one.fake.behaviour = FakeBehaviour(words, hang_after=7)
        name = await begun(one, n=2, seed=4)
        await eventually(lambda: one.fake.sent.total() == 14)
        await eventually(lambda: [log.length for log in store._logs.values()] == [7, 7])
        told = await fetch(two, name)
        texts = [part["text"] for part in told["partial"]]
        assert told["status"] == "in_progress"
        assert [part["index"] for part in told["partial"]] == [0, 1]
        assert texts[0]
        assert WORDS.startswith(texts[0])
        assert "result" not in told
        two.fake.behaviour = one.fake.behaviour = FakeBehaviour(words)
        name = await begun(one, n=2, seed=4)
        told = await until(two, name, "completed")
        waited = (await one.complete("x", n=2, seed=4)).json()
        result = told["result"]
        assert (result.pop("id"), waited.pop("id") != name) == (name, True)
        assert abs(result.pop("created") - waited.pop("created")) <= 60
        assert result == waited
        assert two.fake.requests == []
        rest = await two.http.get(f"/v1/generations/{name}/events")
        assert substance(events_of(rest.text))["choices"][1]["text"] == WORDS
        await eventually(lambda: name not in store._indexes["background"])


async def test_a_chat_in_the_background(make_rig, ids, store):
    """Its result is a chat's body; others in the verifier's queue go before it."""
    async with make_rig(ids(WORDS), store=store) as rig:
        name = (await rig.chat("hi", background=True)).json()["id"]
        result = (await until(rig, name, "completed"))["result"]
        assert result["object"] == "chat.completion"
        assert result["choices"][0]["message"]["content"] == WORDS
        assert rig.fake.requests[0].priority == background.PRIORITY
        await until(rig, await begun(rig, priority=-3), "completed")
        assert rig.fake.requests[1].priority == -3


async def test_what_is_refused(make_rig, store):
    """A stream, a request that no verifier would take, more than may run; and nothing is left."""
    held = FakeBehaviour([5] * 9, hang_after=1)
    async with make_rig(held, store=store, max_background=2) as rig:
        assert (await begin(rig, stream=True)).status_code == 400
        for fields in ({"max_tokens": 999}, {"temperature": -1}, {"n": 1000}):
            assert (await begin(rig, **fields)).status_code == 400
        assert store._documents == {}
        for _ in range(2):
            await begun(rig)
        refused = await begin(rig)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        # Those who wait have places of their own.
        rig.fake.behaviour = FakeBehaviour([5])
        assert (await rig.complete("x")).status_code == 200


async def test_one_key_cannot_have_them_all(make_rig, store, tmp_path):
    """The bound of an API key holds for its background runs, too, by themselves."""
    file = tmp_path / "keys"
    mine, other = ({"Authorization": f"Bearer {keys.add(name, file)}"} for name in ("me", "you"))
    held = FakeBehaviour([5] * 9, hang_after=1)
    async with make_rig(held, store=store, api_keys=file, max_requests_per_key=1) as rig:
        assert (await begin(rig, mine)).status_code == 202
        assert (await begin(rig, mine)).status_code == 429
        mine_too = await begin(rig, other)
        assert mine_too.status_code == 202
        name = mine_too.json()["id"]
        assert (await fetch(rig, name, other))["status"] == "in_progress"
        assert (await fetch(rig, name, mine))["error"]["code"] == "generation_not_found"


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=0.05), Unavailable("gone")])
async def test_a_busy_verifier_is_asked_again(make_rig, ids, eventually, store, error):
    """A run that finds no room, or loses its verifier, goes on later from what was decided."""
    words = ids(WORDS)
    failing = FakeBehaviour(words, error=error, error_after=5)
    async with make_rig(failing, store=store) as rig:
        name = await begun(rig)
        await eventually(lambda: len(rig.fake.requests) >= 2)
        assert (await fetch(rig, name))["status"] == "in_progress"
        rig.fake.behaviour = FakeBehaviour(words)
        told = await until(rig, name, "completed")
        assert told["result"]["choices"][0]["text"] == WORDS
        assert list(rig.fake.requests[-1].committed_token_ids) == words[:5]


async def test_what_fails(make_rig, ids, eventually, store):
    """An error that would come again, the request's own deadline, or too long without room: the
    run has failed and says why; its key is free."""
    async with make_rig(store=store, background_timeout=0.2) as rig:
        bad = FakeBehaviour([5], error=InvalidParameter("top_k is odd", param="top_k"))
        full = FakeBehaviour([5], error=Overloaded("no room"))
        slow = FakeBehaviour(ids(WORDS), hang_after=3)
        for behaviour, fields, code in (
            (bad, {}, "invalid_parameter"),
            (full, {}, "overloaded"),
            (slow, {"timeout": 1.0}, "deadline_exceeded"),
        ):
            rig.fake.behaviour = behaviour
            headers = {"Idempotency-Key": code}
            name = (await begin(rig, headers, **fields)).json()["id"]
            told = await until(rig, name, "failed")
            assert told["error"]["code"] == code
            await eventually(lambda name=name: name not in store._indexes["background"])
            rig.fake.behaviour = FakeBehaviour(ids(WORDS))
            again = (await begin(rig, headers)).json()["id"]
            assert again != name
            await until(rig, again, "completed")


async def test_the_same_key_is_the_same_run(make_rig, ids, store):
    """Whoever repeats the request gets its id, and starts nothing."""
    async with make_rig(ids(WORDS), store=store) as one, make_rig(store=store) as two:
        headers = {"Idempotency-Key": "k"}
        answers = await asyncio.gather(*(begin(rig, headers) for rig in (one, two, one, two)))
        (name,) = {answer.json()["id"] for answer in answers}
        await until(one, name, "completed")
        assert (await begin(two, headers)).json()["id"] == name
        assert len(one.fake.requests) + len(two.fake.requests) == 1
        assert (await begin(two, headers, prompt="y")).status_code == 422


async def test_deleting_stops_it_wherever_it_runs(make_rig, eventually, store):
    """Its verifier's work ends, and nothing remembers it."""
    held = FakeBehaviour([5] * 9, hang_after=3)
    async with make_rig(held, store=store) as one, make_rig(store=store) as two:
        for rig in (one, two):
            name = await begun(one)
            await eventually(lambda: one.fake.running == 1)
            assert (await rig.http.delete(f"/v1/generations/{name}")).status_code == 200
            await eventually(lambda: one.fake.running == 0)
            assert (await fetch(rig, name))["error"]["code"] == "generation_not_found"
        assert store._logs == {}
        assert not store._indexes["background"]
        await asyncio.sleep(0.3)
        assert two.fake.requests == []


async def test_a_gateway_that_stops_lets_go(make_rig, ids, eventually, store):
    """Another one goes on at once, whatever it takes for one that is gone."""
    words = ids(WORDS)
    async with make_rig(words, store=store) as two:
        async with make_rig(FakeBehaviour(words, hang_after=9), store=store) as one:
            name = await begun(one, seed=3)
            await eventually(lambda: one.fake.sent.total() == 9)
        told = await until(two, name, "completed")
        assert told["result"]["choices"][0]["text"] == WORDS
        assert told["result"]["seed"] == 3
        (asked,) = two.fake.requests
        assert list(asked.committed_token_ids) == words[:9]
        values = values_of((await two.http.get("/metrics")).text)
        assert values['slipstream:generations_resumed_total{way="adopted"}'] == 1
        await eventually(lambda: not store._indexes["background"])
        assert not store._indexes["background/free"]


async def test_one_of_several_adopts_an_orphan(make_rig, ids, eventually, monkeypatch):
    """A gateway that is killed says nothing: its runs are found by their silence, and only one of
    those who find them wins. While it beats, nobody touches it."""
    monkeypatch.setattr(background, "ORPHAN_SECONDS", 5.0)
    clock = Clock()
    words, store, later = ids(WORDS), MemoryStore(clock), TroubledStore()
    async with make_rig(FakeBehaviour(words, hang_after=9), store=store) as one:
        names = [await begun(one) for _ in range(3)]
        await eventually(lambda: one.fake.sent.total() == 27)
        await eventually(lambda: all(log.length == 9 for log in store._logs.values()))
        logs = store._logs.values()
        async with make_rig(words, store=store) as watching:
            for _ in range(3):
                clock.now += 4.0
                await eventually(lambda: all(log.beat == clock.now for log in logs))
                await watching.running.kept.background.sweep()
            assert watching.fake.requests == []
        later.__dict__.update({k: v for k, v in store.__dict__.items() if k != "_logs"})
        later._indexes = {name: dict(members) for name, members in store._indexes.items()}
        later._documents = dict(store._documents)
        later._logs = {
            name: replace(log, entries=list(log.entries)) for name, log in store._logs.items()
        }
    monkeypatch.setattr(background, "SWEEP_SECONDS", 3600.0)
    async with make_rig(words, store=later) as two, make_rig(words, store=later) as three:
        clock.now += background.ORPHAN_SECONDS
        # Slow enough that both find all of them before one has any.
        later.all_calls("slow")
        await asyncio.gather(*(rig.running.kept.background.sweep() for rig in (two, three)))
        later.trouble = {}
        for name in names:
            told = await until(two, name, "completed")
            assert told["result"]["choices"][0]["text"] == WORDS
        asked = [*two.fake.requests, *three.fake.requests]
        assert [len(request.committed_token_ids) for request in asked] == [9] * 3


async def test_a_store_that_goes_and_comes_back(make_rig, ids, eventually, store):
    """Runs go on without it; what it missed is written, or computed again, when it is back."""
    words = ids(WORDS)
    async with make_rig(FakeBehaviour(words, delay=0.02), store=store) as rig:
        name = await begun(rig)
        await eventually(lambda: rig.fake.sent.total() >= 3)
        store.all_calls("down")
        assert (await begin(rig)).status_code == 503
        answer = await rig.http.get(f"/v1/generations/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        await eventually(lambda: rig.fake.running == 0)
        store.trouble = {}
        told = await until(rig, name, "completed")
        assert told["result"]["choices"][0]["text"] == WORDS
        await eventually(lambda: name not in store._indexes["background"])


async def test_without_a_store(make_rig, store):
    """A run that cannot be kept is not begun."""
    async with make_rig(store=store) as rig:
        for name in ("put", "log_open", "index_add"):
            for trouble in ("down", "hang"):
                store.trouble = {name: trouble}
                async with asyncio.timeout(10):
                    assert (await begin(rig)).status_code == 503
        assert rig.fake.requests == []


async def test_who_watches_does_not_take_it(make_rig, ids, eventually, store):
    """Its events can be read while it runs; whoever leaves ends nothing."""
    words = ids(WORDS)
    async with make_rig(FakeBehaviour(words, hang_after=6), store=store) as one:
        async with make_rig(words, store=store) as two:
            name = await begun(one)
            await eventually(lambda: [log.length for log in store._logs.values()] == [6])
            path = f"/v1/generations/{name}/events"
            async with two.http.stream("GET", path) as response:
                lines = response.aiter_lines()
                assert (await anext(lines)).startswith("data: ")
            assert one.fake.running == 1
            assert two.fake.requests == []
        # The second one has stopped; the run has not noticed.
        assert (await fetch(one, name))["status"] == "in_progress"
        assert one.fake.running == 1
