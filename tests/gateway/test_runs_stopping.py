"""Gateways that stop, clients that come and go, and what is left of them."""

from __future__ import annotations

import asyncio

import httpx

from gateway.runs.log import read
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.kept import events_of, substance

WORDS = "Hello, world! Stop here and there."


async def test_a_gateway_that_stops_writes_what_it_knows(make_rig, ids, eventually):
    """A stream that its grace cuts short is let go of with all its tokens in the log, and goes on
    elsewhere from there."""
    words, store = ids(WORDS), MemoryStore()
    async with make_rig(words, store=store) as two:
        async with make_rig(FakeBehaviour(words, hang_after=9), store=store) as one:
            received = []
            reading = asyncio.create_task(_read(one, received))
            await eventually(lambda: len(received) >= 9 * 3)
        await asyncio.gather(reading, return_exceptions=True)
        first = events_of("\n".join(received))
        name = first[0].data["id"]
        known = read(await store.log_read(f"gen/{name}/0"))
        assert (known.length, known.released) == (9, True)
        told = (await two.http.get(f"/v1/generations/{name}")).json()
        assert told["status"] == "interrupted"
        assert WORDS.startswith(told["partial"][0]["text"])
        headers = {"Last-Event-ID": first[-1].id}
        rest = await two.http.get(f"/v1/generations/{name}/events", headers=headers)
        whole = substance([*first, *events_of(rest.text)])
        assert whole["choices"][0]["text"] == WORDS
        assert list(two.fake.requests[0].committed_token_ids) == words[:9]


async def _read(rig, received):
    body = {"model": "tiny-chat", "prompt": "x", "stream": True}
    async with rig.http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            received.append(line)


async def test_nothing_stays_behind(make_rig, ids, eventually):
    """After streams, joins, resumptions and background runs that ended, failed or were left: no run
    is active, nothing waits to be written, nothing beats."""
    store, behaviour = MemoryStore(), FakeBehaviour(ids(WORDS), delay=0.003)
    # However busy the machine is, a stream waits for its record.
    async with make_rig(behaviour, store=store, store_timeout=20.0) as rig:

        async def one(number):
            body = {"model": "tiny-chat", "prompt": "x", "n": 2, "stream": number % 2 == 0}
            headers = {"Idempotency-Key": f"k{number % 5}"} if number % 3 == 0 else {}
            if number % 7 == 1:
                body |= {"background": True, "stream": False}
            if number % 11 == 5:
                body |= {"temperature": -1}
            seconds = 0.03 if number % 4 == 2 else 20.0
            try:
                answer = await rig.http.post(
                    "/v1/completions", json=body, headers=headers, timeout=httpx.Timeout(seconds)
                )
            except httpx.TimeoutException:
                return
            if answer.status_code == 200 and body["stream"]:
                event = events_of(answer.text)[3]
                name = event.data["id"]
                again = {"Last-Event-ID": event.id}
                rest = await rig.http.get(f"/v1/generations/{name}/events", headers=again)
                assert substance(events_of(rest.text))["done"] == 1

        await asyncio.gather(*(one(number) for number in range(60)))
        keeper = rig.running.kept.runs.keeper
        await eventually(lambda: not keeper.active)
        await eventually(lambda: not keeper._journal._writers)
        assert keeper._journal.pending_bytes == 0
        await eventually(lambda: not keeper._tasks)
        await eventually(lambda: not store._indexes.get("background"))
        await eventually(lambda: rig.fake.running == 0)


async def test_resuming_takes_a_place(make_rig, ids, eventually):
    """The rest of a stream is a request like any other where the gateway is full."""
    store = MemoryStore()
    async with make_rig(ids(WORDS), store=store, max_requests=1) as rig:
        whole = events_of((await rig.complete("x", stream=True)).text)
        path = f"/v1/generations/{whole[0].data['id']}"
        rig.fake.behaviour = FakeBehaviour(ids(WORDS), hang_after=2)
        held = asyncio.create_task(rig.complete("x"))
        await eventually(lambda: rig.fake.running == 1)
        refused = await rig.http.get(f"{path}/events")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert (await rig.http.get(path)).json()["status"] == "completed"
        held.cancel()


async def test_the_document_tells_of_the_routes(make_rig):
    """They are in the OpenAPI document, with the header that they read and what they answer."""
    async with make_rig() as rig:
        paths = (await rig.http.get("/openapi.json")).json()["paths"]
        one = paths["/v1/generations/{request_id}"]
        assert {"get", "delete"} <= one.keys()
        assert "404" in one["get"]["responses"]
        events = paths["/v1/generations/{request_id}/events"]["get"]
        assert "Last-Event-ID" in [entry["name"] for entry in events["parameters"]]
        assert "text/event-stream" in events["responses"]["200"]["content"]
