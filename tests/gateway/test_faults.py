from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from gateway.verifiers import link as links
from gateway.verifiers.served import Limits
from slipstream.core.errors import InvalidParameter, Overloaded
from slipstream.wire import status
from slipstream.wire.fakes import FakeBehaviour, FakeVerifier
from tests.telemetry.scraped import values_of


async def test_disconnect_in_mid_stream(rig, eventually):
    """A client that leaves a stream cancels every verifier call at once; others go on."""
    rig.fake.behaviour = FakeBehaviour([50] * 9, hang_after=4)
    other = asyncio.create_task(rig.complete("x", seed=9))
    body = {"model": "tiny-chat", "prompt": "x", "n": 3, "stream": True}
    async with rig.http.stream("POST", "/v1/completions", json=body) as response:
        # Held on to: an iterator that is dropped closes the response.
        received = response.aiter_bytes()
        await anext(received)
        await eventually(lambda: rig.fake.running == 4)
    await eventually(lambda: len(rig.fake.cancelled) == 3)
    assert rig.fake.running == 1
    other.cancel()
    await eventually(lambda: rig.fake.running == 0)
    aborted = 'slipstream:request_success_total{finished_reason="abort"}'
    await rig.until_metrics({aborted: 2, "slipstream:num_requests_running": 0})


async def test_disconnect_before_an_answer(rig, eventually):
    """A client that leaves before the answer, streaming or not, cancels the verifier's work."""
    rig.fake.behaviour = FakeBehaviour([5, 6], hang_after=0)
    for stream in (False, True):
        request = asyncio.create_task(rig.complete("x", stream=stream))
        await eventually(lambda: rig.fake.running == 1)
        request.cancel()
        await eventually(lambda: rig.fake.running == 0)
    assert len(rig.fake.cancelled) == 2


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("queue is full"), 429, "overloaded"),
        (InvalidParameter("top_k is odd", param="top_k"), 400, "invalid_parameter"),
    ],
)
async def test_verifier_errors(rig, error, status, code):
    """An error of the verifier before the first token is an HTTP status, streaming or not."""
    rig.fake.behaviour = FakeBehaviour([5, 6], error=error)
    for stream in (False, True):
        response = await rig.complete("x", stream=stream)
        assert response.status_code == status
        told = response.json()["error"]
        assert (told["message"], told["code"], told["param"]) == (error.message, code, error.param)
        assert ("retry-after" in response.headers) == (status == 429)


async def test_one_failing_choice_ends_the_request(rig, eventually):
    """With n > 1 the failure of one stream is the request's, and the others are cancelled."""

    def tokens(prompt, params, i):
        if params.seed == 1:
            raise Overloaded("no room")
        return 5

    rig.fake.behaviour = FakeBehaviour(tokens, delay=0.02)
    response = await rig.complete("x", n=3, seed=0, max_tokens=100)
    assert response.status_code == 429
    await eventually(lambda: rig.fake.running == 0)


async def test_one_refused_choice_refuses_the_request(rig, eventually, monkeypatch):
    """A choice that is refused long after another's first token is a status with the hint, not an
    event in a stream that has begun; once all have begun, an error is one."""
    respond = FakeVerifier._respond

    async def slowly(fake, request, behaviour):
        if request.sampling.seed == 1:
            await eventually(lambda: fake.sent[request.request_id[:-1] + "0"])
            await asyncio.sleep(0.1)
            raise Overloaded("given up", retry_after=3.0)
        async for response in respond(fake, request, behaviour):
            yield response

    monkeypatch.setattr(FakeVerifier, "_respond", slowly)
    rig.fake.behaviour = FakeBehaviour([5] * 100, delay=0.005)
    for stream in (True, False):
        response = await rig.complete("x", n=3, seed=0, max_tokens=100, stream=stream)
        assert response.status_code == 429
        assert response.headers["retry-after"] == "3"
        await eventually(lambda: rig.fake.running == 0)
    monkeypatch.setattr(FakeVerifier, "_respond", respond)
    rig.fake.behaviour = FakeBehaviour([5] * 9, error=Overloaded("later"), error_after=4)
    response = await rig.complete("x", n=3, stream=True)
    assert response.status_code == 200
    assert '"later"' in response.text


async def test_verifier_lost_in_mid_stream(rig, ids):
    """A verifier that dies in mid-stream ends the stream with an error event, without [DONE]."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello, world!"), hang_after=3)
    body = {"model": "tiny-chat", "prompt": "x", "stream": True}
    async with rig.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        await anext(lines)
        await rig.fake.stop()
        rest = [line async for line in lines if line]
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["code"] == "unavailable"
    # From now on requests are refused at once, and readiness says why.
    async with asyncio.timeout(20):
        refused = await rig.complete("x")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert refused.headers["retry-after"]
    ready = await rig.http.get("/ready")
    assert ready.status_code == 503
    assert "verifier" in ready.json()["missing"][0]
    assert (await rig.http.get("/health")).status_code == 200


async def test_verifier_comes_back(rig, eventually):
    """The gateway finds a restarted verifier by itself."""
    address = rig.fake.address
    await rig.fake.stop()
    assert (await rig.complete("x")).status_code == 503
    await rig.fake.start(address)
    await rig.until_ready()
    assert (await rig.complete("x")).status_code == 200


async def test_late_answers_do_not_lose_the_verifier(monkeypatch):
    """Late heartbeats change nothing until it has been silent for long; a closed port does at once,
    and an answer makes good for both."""
    delay = 0.0

    async def get_model(self, request, context):
        await asyncio.sleep(delay)
        return self.model

    monkeypatch.setattr(FakeVerifier, "GetModel", status.unary(get_model))
    monkeypatch.setattr(links, "_BEAT_SECONDS", 0.05)
    async with FakeVerifier([5]) as fake:
        link = links.VerifierLink(fake.address, Limits(lost_after=0.3))
        # On a busy machine an answer, and even a refusal, takes longer than these heartbeats do.
        await link.beat(20)
        assert link.state == "serving"
        delay, heard = 60.0, link._heard_at
        while link.state == "serving":
            await link.beat()
        assert time.monotonic() - heard >= 0.3
        delay = 0.0
        await link.beat(20)
        assert link.state == "serving"
        await fake.stop()
        await link.beat(20)
        assert link.state == "lost"
        await link.close()


async def test_ready_asks_the_health_check(rig):
    """A verifier that says NOT_SERVING is not ready; the drafter is information only."""
    ready = (await rig.http.get("/ready")).json()
    # The way there and back, on one machine.
    assert 0 < ready["verifiers"][0].pop("round_trip_seconds") < 5
    drafter = {"connected": False, "detail": "a fake has no drafter"}
    one = {"address": rig.fake.address, "detail": "", "zone": "", "drafter": drafter}
    one["exactness"] = ""
    assert ready == {
        "ready": True,
        "missing": [],
        "drafter": drafter,
        "verifiers": [{**one, "state": "serving"}],
        "discovery": [],
        "store": {"state": "ok", "detail": ""},
    }
    await rig.fake.set_serving(False)
    await rig.until_states(draining=1)
    answer = await rig.http.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["missing"] == [f"verifier at {rig.fake.address}: it is not serving"]


async def test_ready_lists_all_verifiers(make_rig):
    """One that serves is enough; what the others are is said, here and in the metrics."""
    fakes = [{"zone": "a"}, {"zone": "b"}, {"zone": "b", "precision": "int8"}]
    async with make_rig(fakes=fakes) as rig:
        await rig.until_states(serving=2, other_model=1)
        rig.fakes[1].drafter_connected = True
        await rig.fakes[0].stop()
        await rig.tell()
        answer = await rig.http.get("/ready")
        assert answer.status_code == 200
        body = answer.json()
        assert (body["missing"], body["drafter"]["connected"]) == ([], True)
        found = {one["address"]: one for one in body["verifiers"]}
        lost, serving, _ = (found[fake.address] for fake in rig.fakes)
        assert (lost["state"], lost["zone"], lost["drafter"]["connected"]) == ("lost", "a", None)
        assert lost["detail"]
        assert (serving["state"], serving["zone"], serving["detail"]) == ("serving", "b", "")
        values = values_of((await rig.http.get("/metrics")).text)
        states = {"lost": 1, "draining": 0}
        for state, count in states.items():
            assert values[f'slipstream:verifiers{{state="{state}"}}'] == count
        for fake in rig.fakes[1:]:
            await fake.stop()
        await rig.tell()
        answer = await rig.http.get("/ready")
        assert answer.status_code == 503
        assert len(answer.json()["missing"]) == 3


async def test_deadlines(make_rig, ids, eventually):
    """A verifier that sends nothing runs into the deadline, before and after the first token."""
    limits = {"first_token_timeout": 0.2, "idle_timeout": 0.2}
    async with make_rig(FakeBehaviour(ids("Hello"), hang_after=0), **limits) as rig:
        late = await rig.complete("x")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        rig.fake.behaviour = FakeBehaviour(ids("Hello"), hang_after=1)
        last = (await rig.complete("x", stream=True)).text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        await eventually(lambda: rig.fake.running == 0)


async def test_signs_of_life(make_rig, ids, eventually):
    """Messages without tokens keep a stream that has begun alive, whatever --idle-timeout is, and
    neither make an answer out of a wait for the first token nor prolong it."""
    alive = FakeBehaviour(ids("Hello"), hang_after=1, beat=0.05)
    async with make_rig(alive, idle_timeout=1.5) as rig:
        response = await rig.complete("x", stream=True, timeout=2.5)
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["param"] == "timeout"
    waiting = FakeBehaviour(ids("Hello"), hang_after=0, beat=0.05)
    async with make_rig(waiting, first_token_timeout=0.5) as rig:
        async with asyncio.timeout(20):
            waited = await rig.complete("x", stream=True)
        assert waited.status_code == 504
        assert "sent nothing" in waited.json()["error"]["message"]
        await eventually(lambda: rig.fake.running == 0)


async def test_many_at_once(rig, ids):
    """A hundred concurrent requests, some bad and some abandoned, all end with their own text."""
    words = ["Hello", "world", "Stop", "fox", "dog"]
    texts = [ids(word) for word in words]

    def tokens(prompt, params, i):
        script = texts[params.seed % 5]
        return script[i] if i < len(script) else 2

    rig.fake.behaviour = FakeBehaviour(tokens, delay=0.01)

    async def one(number: int) -> None:
        if number % 10 == 3:
            assert (await rig.complete("x", temperature=-1)).status_code == 400
        elif number % 10 == 7:
            with pytest.raises(httpx.TimeoutException):
                await rig.http.post(
                    "/v1/completions",
                    json={"model": "tiny-chat", "prompt": "x", "n": 2},
                    timeout=httpx.Timeout(5, read=0.005),
                )
        else:
            answer = await rig.complete("x", seed=number)
            assert answer.json()["choices"][0]["text"] == words[number % 5]

    await asyncio.gather(*(one(number) for number in range(100)))


async def test_stopping_with_streams(make_rig, eventually, caplog):
    """A gateway that stops ends what is still streaming after its grace, and logs no failure."""
    behaviour = FakeBehaviour([5, 6, 7], hang_after=2)
    async with make_rig(behaviour) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.running.http_port)
        body = b'{"model": "tiny-chat", "prompt": "x", "stream": true}'
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        await eventually(lambda: rig.fake.sent.total() == 2)
    async with asyncio.timeout(20):
        received = await reader.read()
    assert b"data: {" in received
    assert not received.endswith(b"0\r\n\r\n")
    # That its call is over reaches the verifier in its own time.
    await eventually(lambda: rig.fake.cancelled)
    assert [record for record in caplog.records if "ASGI" in record.getMessage()] == []
    writer.close()
