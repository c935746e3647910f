"""Kept generations where gateways are not alike: another model, no verifier, an overtaken run."""

from __future__ import annotations

import asyncio

from gateway.runs import background
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.kept import TroubledStore, events_of, held

WORDS = "The quick brown fox jumps over the lazy dog."


async def test_another_models_gateway_refuses(make_rig, ids):
    """Its tokenizer would make other text of the tokens in the log: 409, and no answer."""
    store = MemoryStore()
    async with (
        make_rig(ids(WORDS), store=store) as one,
        make_rig([60, 61], store=store, fakes=({"fingerprint": "g"},)) as two,
    ):
        told = events_of((await one.chat("x", stream=True)).text)
        name = told[0].data["id"]
        for path, headers in (
            ("", {}),
            ("/events", {}),
            ("/events", {"Last-Event-ID": told[2].id}),
        ):
            answer = await two.http.get(f"/v1/generations/{name}{path}", headers=headers)
            assert answer.status_code == 409, answer.text
            assert answer.json()["error"]["code"] == "model_mismatch"
        assert (await one.http.get(f"/v1/generations/{name}")).json()["status"] == "completed"


async def test_an_orphan_goes_to_a_gateway_that_has_a_verifier(
    make_rig, ids, monkeypatch, eventually
):
    """One whose verifiers are gone does not hold it: not when it finds it, nor when it runs it."""
    monkeypatch.setattr(background, "SWEEP_SECONDS", 0.1)
    store = MemoryStore()
    async with make_rig(FakeBehaviour(ids(WORDS), hang_after=5), store=store) as two:
        name = (await two.chat("x", background=True)).json()["id"]
        await eventually(lambda: two.fake.sent)
        await two.fake.stop()
        await eventually(lambda: not two.running.kept.background.running)
        assert (await two.http.get(f"/v1/generations/{name}")).json()["status"] == "in_progress"
        async with make_rig(ids(WORDS), store=store) as three:
            await eventually(lambda: three.fake.requests)

            async def done():
                return (await three.http.get(f"/v1/generations/{name}")).json()

            async with asyncio.timeout(20):
                while (found := await done())["status"] == "in_progress":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert found["result"]["choices"][0]["message"]["content"] == WORDS
        assert not two.running.kept.background.running


async def test_a_background_turn_is_settled_when_it_is_fetched(make_rig, ids, eventually):
    """Where the store failed at the commit, whoever fetches the answer has the turn stored, and is
    told so."""
    store = TroubledStore()
    async with make_rig(ids(WORDS), store=store) as rig:
        go_on = held(rig.fake, 3)
        name = (await rig.chat("x", background=True, session_id="s", session_turn=0)).json()["id"]
        await eventually(lambda: rig.fake.sent.total() > 2)
        store.trouble["put"] = "down"
        go_on.set()
        await eventually(lambda: not rig.running.kept.background.running)
        store.trouble.clear()
        result = (await rig.http.get(f"/v1/generations/{name}")).json()["result"]
        assert result["choices"][0]["message"]["content"] == WORDS
        assert result["session"] == {"id": "s", "turns": 1, "stored": True, "detail": ""}
        assert (await rig.http.get("/v1/sessions/s")).json()["num_turns"] == 1


async def test_an_overtaken_run_burns_no_key(make_rig, ids, eventually):
    """While another gateway goes on with it, the first one's end is nobody's failure: the same POST
    joins, and the turn is stored once."""
    store = TroubledStore()
    async with make_rig(ids(WORDS), store=store) as one, make_rig(ids(WORDS), store=store) as two:
        first_goes_on, second_goes_on = held(one.fake, 4), held(two.fake, 2)
        messages = [{"role": "user", "content": "x"}]
        body = {"model": "tiny-chat", "messages": messages, "stream": True, "seed": 1}
        body |= {"session_id": "s", "session_turn": 0}
        key = {"Idempotency-Key": "k"}
        path = "/v1/chat/completions"

        def post(rig, body, **headers):
            asked = rig.http.post(path, json=body, headers={**key, **headers})
            return asyncio.create_task(asked)

        first = post(one, body, **{"X-Request-Id": "m"})
        await eventually(lambda: one.fake.sent.total() > 2)
        second = post(two, body, **{"Last-Event-ID": "chatcmpl-m/1"})
        await eventually(lambda: two.fake.sent.total() > 1)
        first_goes_on.set()
        await first
        third = post(two, {**body, "stream": False})
        reads = store.calls["log_read"]
        await eventually(lambda: store.calls["log_read"] > reads + 1)
        second_goes_on.set()
        third = await third
        assert third.status_code == 200, third.text
        assert third.json()["id"] == "chatcmpl-m"
        assert third.json()["choices"][0]["message"]["content"] == WORDS
        assert third.json()["session"]["stored"]
        assert (await second).status_code == 200
        assert (await one.http.get("/v1/sessions/s")).json()["num_turns"] == 1


async def test_with_resumption_off_a_key_promises_no_more(make_rig, ids):
    """A stream with an idempotency key is kept, but has no event ids that nobody would take."""
    async with make_rig(ids(WORDS), resume="off") as rig:
        body = {"model": "tiny-chat", "prompt": "x", "stream": True}
        key = {"Idempotency-Key": "k"}
        answers = [await rig.http.post("/v1/completions", json=body, headers=key) for _ in "12"]
        for answer in answers:
            assert answer.headers["x-slipstream-resumable"] == "no"
            assert not any(line.startswith("id:") for line in answer.text.splitlines())
        assert len(rig.fake.requests) == 1
