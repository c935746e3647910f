"""Turns of sessions as kept generations: resumed, joined, in the background, not kept at all."""

from __future__ import annotations

import asyncio
import json

from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.test_sessions_api import drawn, said

BODY = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def events_of(text: str) -> list[tuple[str, dict]]:
    found = []
    for event in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line)
        if "id" in lines:
            found.append((lines["id"], json.loads(lines["data"])))
    return found


def text_of(events) -> str:
    deltas = [data["choices"][0]["delta"] for _, data in events if data["choices"]]
    return "".join(delta.get("content", "") for delta in deltas)


async def test_a_turn_resumed_at_another_gateway(make_rig):
    """From wherever its client was cut, another gateway gives the rest, and the turn is stored
    once, whole, with the text of an undisturbed one; the next turn goes on from it."""
    store = MemoryStore()
    async with make_rig(drawn, store=store) as one, make_rig(drawn, store=store) as two:
        fields = {"seed": 4, "temperature": 1.0, "max_tokens": 10}
        plain, _ = said(await one.chat("hi", **fields))
        whole = None
        for cut in (1, 3, 5, 1000):
            name = f"s{cut}"
            body = {**BODY, **fields, "session_id": name, "session_turn": 0}
            one.fake.behaviour = FakeBehaviour(drawn, delay=0.01)
            got = ""
            async with one.http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.headers["x-slipstream-resumable"] == "yes"
                async for piece in response.aiter_text():
                    got += piece
                    if len(events_of(got)) >= cut:
                        break
            before = events_of(got)[:cut]
            headers = {"Last-Event-ID": before[-1][0]}
            rest = await two.http.post("/v1/chat/completions", json=body, headers=headers)
            assert rest.status_code == 200, rest.text
            after = events_of(rest.text)
            assert text_of([*before, *after]) == plain
            last = [*before, *after][-1][1]
            assert last["session"] == {"id": name, "turns": 1, "stored": True, "detail": ""}
            async with asyncio.timeout(10):
                kept = (await two.http.get(f"/v1/sessions/{name}")).json()
            assert [turn["output"] for turn in kept["turns"]] == [plain]
            _, state = said(await one.chat("more", session_id=name, session_turn=1, **fields))
            assert state["turns"] == 2
            sent = list(one.fake.requests[-1].prompt_token_ids)
            assert whole in (None, sent)
            whole = sent


async def test_idempotent_turns(make_rig):
    """The same turn under one key is one turn, whichever gateway it is repeated at."""
    store = MemoryStore()
    async with make_rig(drawn, store=store) as one, make_rig(drawn, store=store) as two:
        body = {**BODY, "stream": False, "session_id": "s", "session_turn": 0, "seed": 1}
        answers = [
            await rig.http.post("/v1/chat/completions", json=body, headers={"Idempotency-Key": "k"})
            for rig in (one, two, one)
        ]
        texts = [said(answer) for answer in answers]
        assert texts == [texts[0]] * 3
        assert texts[0][1]["stored"]
        assert (await one.http.get("/v1/sessions/s")).json()["num_turns"] == 1


async def test_a_turn_in_the_background(make_rig):
    """A turn that nobody waits for becomes part of its session."""
    async with make_rig(drawn, store=MemoryStore()) as rig:
        body = {**BODY, "stream": False, "session_id": "s", "session_turn": 0, "background": True}
        begun = await rig.http.post("/v1/chat/completions", json=body)
        assert begun.status_code == 202
        async with asyncio.timeout(20):
            while (await rig.http.get("/v1/sessions/s")).json().get("num_turns") != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_resumption_off(make_rig):
    """Sessions need no resumption: turns of plain streams are stored, too."""
    async with make_rig(drawn, store=MemoryStore(), resume="off") as rig:
        for count in range(2):
            answer = await rig.chat("hi", session_id="s", session_turn=count, stream=count == 1)
            assert said(answer)[1]["turns"] == count + 1
