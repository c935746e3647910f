"""Clients that do not give up, against servers that fail by a script."""

from __future__ import annotations

import asyncio
import json
import random

import grpc
import httpx
import pytest

from slipstream.core.errors import GenerationNotFound, Unavailable
from slipstream.wire import status
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.transport import Server, channel
from tests.chaos.answers import Choice, Truth
from tests.chaos.asks import Ask
from tests.chaos.grpc_client import GrpcClient
from tests.chaos.history import StoreHistory
from tests.chaos.http_client import HttpClient
from tests.chaos.session_client import play
from tests.chaos.tries import Gateway, Tries
from tests.chaos.verdict import Turn, Verdict, judge
from tests.chaos.workload import Dialogue

TOKENS = ["a", "b", "c", "d"]
ASK = Ask("ask", (("user", "hi"),), 4, 7)
CHOICE = Choice("abcd", (0, 1, 2, 3), tuple(TOKENS), (), "length", 4)
TRUTH = Truth((CHOICE,), 3)
USAGE = {"completion_tokens": 4, "prompt_tokens": 3}
DOORS = (Gateway("http://one", ""), Gateway("http://two", ""))


class Stream(httpx.AsyncByteStream):
    """Events of an answer from token `begin` on, cut before token `cut`."""

    def __init__(self, begin=0, cut=None, error=None, named=True):
        self.begin, self.cut, self.error, self.named = begin, cut, error, named

    async def __aiter__(self):
        stop = len(TOKENS) if self.cut is None else self.cut
        for place in range(self.begin, stop):
            delta = {"index": 0, "delta": {"content": TOKENS[place]}, "finish_reason": None}
            yield self.event(f"r/{place + 1}", choices=[delta])
        if self.error:
            yield self.event("", error={"code": self.error, "message": "oh"})
        if self.cut is not None:
            yield b"id: r/9\ndata: {half of an ev"
            raise httpx.ReadError("cut")
        ending = {"index": 0, "delta": {}, "finish_reason": "length"}
        yield self.event("r/4.", choices=[ending])
        yield self.event("r/end", choices=[], usage=USAGE)
        yield b"data: [DONE]\n\n"

    def event(self, name, **content):
        first = f"id: {name}\n" if name and self.named else ""
        return f"{first}data: {json.dumps({'id': 'r', **content})}\n\n".encode()


def refusal(code, http_status, after=None):
    headers = {} if after is None else {"Retry-After-Ms": after}
    return httpx.Response(
        http_status, headers=headers, json={"error": {"code": code, "message": "no"}}
    )


class Scripted:
    """Answers one request after the other, and remembers them."""

    def __init__(self, *script):
        self.script, self.seen = list(script), []

    async def __call__(self, request):
        self.seen.append(request)
        step = self.script.pop(0)
        if callable(step):
            step = step()
        if isinstance(step, Exception):
            raise step
        return step if isinstance(step, httpx.Response) else httpx.Response(200, stream=step)

    def client(self, history=None, seconds=20.0):
        tries = Tries(DOORS, random.Random(1), history or StoreHistory(), seconds)
        web = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return HttpClient(web, "m", tries), tries


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Pauses are there, and short."""
    monkeypatch.setattr("tests.chaos.tries._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("tests.chaos.tries._LONGEST_PAUSE", 0.02)
    monkeypatch.setattr("tests.chaos.http_client._POLL", 0.01)
    monkeypatch.setattr("tests.chaos.session_client._UNSTORED_PAUSE", 0.01)


async def test_a_stream_is_resumed_behind_its_last_event():
    """Half an event counts for nothing; the rest comes from the other gateway, once; the answer is
    right, and a server that sends a token again, or leaves one out, is found."""
    server = Scripted(Stream(cut=2), refusal("draining", 503, "10"), Stream(begin=2))
    client, _ = server.client()
    answer = await client.ask(ASK, "stream", "key", {})
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT
    post, refused, get = server.seen
    assert (post.method, post.headers["idempotency-key"]) == ("POST", "key")
    assert (get.method, get.url.path) == ("GET", "/v1/generations/r/events")
    assert get.headers["last-event-id"] == refused.headers["last-event-id"] == "r/2"
    assert post.url.host != refused.url.host != get.url.host
    assert answer.ways["resumed"] == 1
    for begin, verdict in ((1, Verdict.DOUBLED), (3, Verdict.LOST)):
        client, _ = Scripted(Stream(cut=2), Stream(begin=begin)).client()
        found = judge(await client.ask(ASK, "stream", "key", {}), TRUTH)
        assert found.verdict is verdict, begin


async def test_a_stream_of_which_nothing_came_is_asked_for_again():
    """With the same key; an error within a stream is one to get over, as far as it passes."""
    server = Scripted(httpx.ConnectError("no"), Stream(cut=0), Stream(error="unavailable", cut=1))
    server.script.append(Stream(begin=1))
    client, _ = server.client()
    answer = await client.ask(ASK, "stream", "key", {})
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT
    assert [r.method for r in server.seen] == ["POST", "POST", "POST", "GET"]
    assert {r.headers.get("idempotency-key") for r in server.seen[:3]} == {"key"}
    client, _ = Scripted(Stream(error="invalid_parameter", cut=1)).client()
    assert (await client.ask(ASK, "stream", "key", {})).failure.startswith("invalid_parameter")


async def test_a_generation_that_is_gone_is_lost_unless_the_store_was_away():
    """Beginning again is only for what a store could not keep; then all of it comes, and what came
    before is still looked at."""
    script = (Stream(cut=2), refusal("generation_not_found", 404), Stream())
    client, _ = Scripted(*script).client()
    found = judge(await client.ask(ASK, "stream", "key", {}), TRUTH)
    assert (found.verdict, "generation_not_found" in found.detail) == (Verdict.LOST, True)
    history = StoreHistory()
    history.leaves(asyncio.get_running_loop().time())
    client, _ = Scripted(*script).client(history)
    answer = await client.ask(ASK, "stream", "key", {})
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT
    assert answer.partials[0][0].text == "ab"
    assert answer.ways["begun again"] == 1


async def test_a_stream_without_event_ids_is_lost_when_it_breaks():
    """Its client does not just ask again, which would hide that it cannot be resumed; unless the
    store was away, of course, or nothing had come yet."""
    client, _ = Scripted(Stream(cut=2, named=False), Stream(named=False)).client()
    found = judge(await client.ask(ASK, "stream", "key", {}), TRUTH)
    assert (found.verdict, "no ids" in found.detail) == (Verdict.LOST, True)
    history = StoreHistory()
    history.leaves(asyncio.get_running_loop().time())
    script = Stream(cut=0, named=False), Stream(cut=2, named=False), Stream(named=False)
    client, _ = Scripted(*script).client(history)
    answer = await client.ask(ASK, "stream", "key", {})
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT
    assert (answer.ways["repeated"], answer.ways["begun again"]) == (2, 1)


async def test_a_fault_of_the_servers_own_is_told():
    """An internal error is got over, and held against it. Patience ends."""
    client, _ = Scripted(refusal("internal_error", 500), Stream()).client()
    assert judge(await client.ask(ASK, "stream", "key", {}), TRUTH).verdict is Verdict.BROKEN
    client, _ = Scripted(*[refusal("unavailable", 503, "100")] * 99).client(seconds=0.3)
    answer = await client.ask(ASK, "stream", "key", {})
    assert judge(answer, TRUTH).verdict is Verdict.LOST
    assert answer.failure.startswith("not within")


def whole(**more):
    choice = {"index": 0, "message": {"content": "abcd"}, "finish_reason": "length"}
    return {"id": "r", "choices": [choice], "usage": USAGE, **more}


async def test_whole_answers_are_asked_for_again_and_fetched_later():
    """A repeated POST has the same key and body; a background one is polled at all gateways."""
    server = Scripted(httpx.ReadTimeout("slow"), httpx.Response(200, json=whole()))
    client, _ = server.client()
    assert judge(await client.ask(ASK, "whole", "key", {}), TRUTH).verdict is Verdict.RIGHT
    assert server.seen[0].content == server.seen[1].content
    assert {r.headers["idempotency-key"] for r in server.seen} == {"key"}
    server = Scripted(
        httpx.Response(202, json={"id": "r", "status": "in_progress"}),
        httpx.Response(200, json={"id": "r", "status": "in_progress"}),
        httpx.ReadError("cut"),
        httpx.Response(200, json={"id": "r", "status": "completed", "result": whole()}),
    )
    client, _ = server.client()
    answer = await client.ask(ASK, "background", "key", {})
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT
    assert json.loads(server.seen[0].content)["background"] is True
    assert {r.url.path for r in server.seen[1:]} == {"/v1/generations/r"}
    assert len({r.url.host for r in server.seen}) == 2
    failed = httpx.Response(200, json={"id": "r", "status": "failed", "error": {"code": "x"}})
    client, _ = Scripted(httpx.Response(202, json={"id": "r"}), failed).client()
    assert (await client.ask(ASK, "background", "key", {})).failure.startswith(
        "in the background: x"
    )


class FakeGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers four tokens; the first two calls end in their middle, the third knows nothing."""

    def __init__(self, forgets=False):
        self.seen, self.forgets = [], forgets

    @status.streaming
    async def Generate(self, request, context):  # noqa: N802
        self.seen.append(request)
        call = len(self.seen)
        begin = int(request.resume_from.partition("/")[2] or 0)
        if self.forgets and call == 2:
            raise GenerationNotFound("never heard of it")
        for place in range(begin, 4):
            if place == call and call < 3:
                raise Unavailable("the verifier is gone", retry_after=0.01)
            message = gateway_pb2.GatewayServiceGenerateResponse(
                request_id="r", text=TOKENS[place], event_id=f"r/{place + 1}",
                tokens=[types_pb2.Token(id=place)],
            )  # fmt: skip
            if place == 3:
                message.event_id = "r/4."
                message.finish_reason = types_pb2.FINISH_REASON_LENGTH
                message.usage.completion_tokens, message.usage.prompt_tokens = 4, 3
            yield message


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_grpc_stream_is_resumed(forgets):
    """From the last response's name, ids and text as one; where it is forgotten though the store
    was well, it is lost."""
    server = Server("127.0.0.1:0", ["slipstream.v1.GatewayService"])
    fake = FakeGateway(forgets)
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(fake, server.grpc)
    address = f"127.0.0.1:{await server.start()}"
    try:
        async with channel(address) as link:
            tries = Tries([Gateway("", address)], random.Random(1), StoreHistory(), 20.0)
            answer = await GrpcClient({address: link}, tries).ask(ASK, "key", {})
    finally:
        await server.stop(0)
    if forgets:
        assert judge(answer, TRUTH).verdict is Verdict.LOST
        return
    assert judge(answer, TRUTH).verdict is Verdict.RIGHT
    assert answer.choices[0].token_ids == [0, 1, 2, 3]
    assert [r.resume_from for r in fake.seen] == ["", "r/1", "r/2"]
    assert fake.seen[0].idempotency_key == "key"


async def test_a_dead_grpc_gateway_is_a_broken_connection():
    """Nobody listens: tried again until patience is over."""
    async with channel("127.0.0.1:9") as link:
        tries = Tries([Gateway("", "x")], random.Random(1), StoreHistory(), 0.3)
        answer = await GrpcClient({"x": link}, tries).ask(ASK, "key", {})
    assert answer.failure.startswith("not within")
    assert "UNAVAILABLE" in answer.failure or grpc.StatusCode.UNAVAILABLE.name in answer.failure


STORED = {"id": "s", "turns": 1, "stored": True, "detail": ""}
DIALOGUE = Dialogue("d", (ASK, Ask("d/1", (("user", "and?"),), 4, 8)))


async def played(*script, history=None):
    server = Scripted(*script)
    client, tries = server.client(history)

    async def ask(ask, key, extra):
        return await client.ask(ask, "whole", key, extra)

    return await play(DIALOGUE, "s", tries, ask), server


def turn(**session):
    return httpx.Response(200, json=whole(session={**STORED, **session}))


async def test_a_dialogue_says_which_turn_it_is_at():
    """Each turn sends what is new, the session and the number of turns; a lost reply is asked for
    again with the same key; what is acknowledged is kept."""
    found, server = await played(
        turn(), httpx.ReadError("cut"), refusal("session_conflict", 409), turn()
    )
    bodies = [json.loads(r.content) for r in server.seen]
    assert [(b["session_id"], b["session_turn"]) for b in bodies] == [("s-0", 0)] + [("s-0", 1)] * 3
    assert bodies[1]["messages"] == [{"role": "user", "content": "and?"}]
    assert len({r.headers["idempotency-key"] for r in server.seen}) == 2
    assert not found.failure
    (session,) = found.sessions
    assert session.acknowledged == [Turn("hi", "abcd"), Turn("and?", "abcd")]
    assert session.pending is None


async def test_a_session_may_be_unknown_only_if_the_store_forgot():
    """Else it is a lost one. Where it did, the dialogue begins again in a new one; so it does where
    a turn could not be stored."""
    gone = refusal("session_not_found", 404)
    found, _ = await played(turn(), gone)
    assert "is unknown" in found.failure
    now = asyncio.get_running_loop().time()
    history = StoreHistory()

    def forgotten():
        history.emptied.append(asyncio.get_running_loop().time())
        return gone

    found, _ = await played(turn(), forgotten, turn(), turn(), history=history)
    assert not found.failure
    assert [s.id for s in found.sessions] == ["s-0", "s-1"]
    assert [turn for turn, _ in found.answers] == [0, 0, 1]
    found, _ = await played(turn(stored=False, detail="down"))
    assert "is not stored" in found.failure
    history = StoreHistory(away=[(now, now + 60)])
    found, _ = await played(turn(), turn(stored=False), turn(), turn(), history=history)
    assert (found.failure, found.unstored) == ("", 1)
    first, second = found.sessions
    assert (len(first.acknowledged), first.pending, len(second.acknowledged)) == (
        1, Turn("and?", "abcd"), 2,
    )  # fmt: skip
