"""A stream that is cut anywhere and resumed says what an undisturbed one says, no less, no more."""

from __future__ import annotations

import time
from types import SimpleNamespace

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import keys
from gateway.runs import journal as journals
from gateway.runs import record
from gateway.runs.log import RELEASED, Message
from slipstream.core.errors import Overloaded
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.conftest import EOS
from tests.gateway.kept import cut_logs, events_of, held, substance, without_chance
from tests.telemetry.scraped import values_of

MANY = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
async def pair(make_rig):
    """Two gateways, each with a verifier, over one store."""
    store = MemoryStore()
    async with make_rig(store=store) as one, make_rig(store=store) as two:
        one.store = two.store = store
        yield one, two


def script(scripts):
    """Tokens of a choice by its seed; its end behind them."""

    def tokens(prompt, params, place):
        chosen = scripts[params.seed % len(scripts)]
        return chosen[place] if place < len(chosen) else EOS

    return tokens


async def resumed(rig, event_id, name, **headers):
    if event_id is not None:
        headers["Last-Event-ID"] = event_id
    return await rig.http.get(f"/v1/generations/{name}/events", headers=headers)


async def check_every_cut(one, two, answer, cut):
    """Compares the rest behind each event with what an undisturbed stream says there.

    Args:
        cut: tokens of each log that the store has when the client comes back, by the event's place.
    """
    whole = events_of(answer.text)
    name = whole[0].data["id"]
    assert substance(whole)["done"] == 1
    for place in range(-1, len(whole) - 1):
        event_id = whole[place].id if place >= 0 else None
        rest = whole[place + 1 :] if event_id else whole
        cut(name, place)
        answer = await resumed((one, two)[place % 2], event_id, name)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-slipstream-resumable"] == "yes"
        got, expected = substance(events_of(answer.text)), substance(rest)
        assert without_chance(got) == without_chance(expected), event_id


@MANY
@given(data=st.data())
async def test_every_cut_of_every_stream(pair, ids, data):
    """Whatever the tokens, stop strings, choices, log probabilities and chunks are, and whatever
    of the log is there: text, tokens, offsets, ends and usage follow on exactly."""
    one, two = pair
    often = st.sampled_from([*ids("naïve 日本😀 Stop here"), *ids("é😀"), 2])
    scripts = data.draw(
        st.lists(st.lists(often | st.integers(3, 400), max_size=14), min_size=3, max_size=3)
    )
    chunks = st.lists(st.integers(1, 5), min_size=1, max_size=3)
    for rig in pair:
        rig.fake.behaviour = FakeBehaviour(script(scripts), chunks=data.draw(chunks))
    chat = data.draw(st.booleans())
    fields = {
        "stream": True,
        "n": data.draw(st.sampled_from([1, 3])),
        "seed": data.draw(st.integers(0, 2)),
        "max_tokens": data.draw(st.integers(1, 12)),
    }
    stops = data.draw(st.lists(st.sampled_from(["op h", "本", "e", "ï"]), max_size=2))
    if stops:
        fields["stop"] = stops
    if data.draw(st.booleans()):
        fields["stream_options"] = {"include_usage": True}
    if data.draw(st.booleans()):
        fields |= {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}
    answer = await (one.chat("x", **fields) if chat else one.complete("x", **fields))
    known = data.draw(st.sampled_from(["all", "some", "nothing"]))

    def cut(name, place):
        if known != "all":
            cut_logs(one.store, name, place // 2 if known == "some" else None)

    await check_every_cut(one, two, answer, cut)


WORDS = "Hello, world! Stop here and there."


async def begin(rig, events, **fields):
    """Reads so many events of a stream, and leaves; the events."""
    body = {"model": "tiny-chat", "prompt": "x", "stream": True, **fields}
    async with rig.http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        found = []
        async for line in response.aiter_lines():
            found.append(line)
            if found.count("") == events:
                break
    return events_of("\n".join(found))


def let_go(log) -> bool:
    """Whether a log's writer has written all that it had, and left."""
    return bool(log.entries) and Message.FromString(log.entries[-1][1]).finish_reason == RELEASED


async def test_a_cut_stream_goes_on_elsewhere(pair, ids, eventually):
    """A client that leaves ends the work at once, as ever; at another gateway it gets the rest,
    which a verifier decides behind what the log holds."""
    one, two = pair
    words = ids(WORDS)
    one.fake.behaviour = FakeBehaviour(words, hang_after=7)
    two.fake.behaviour = FakeBehaviour(words, chunks=(3,))
    first = await begin(one, 6, seed=5, n=2)
    await eventually(lambda: len(one.fake.cancelled) == 2)
    name = first[0].data["id"]
    # What was on its way when the client left is in the log all the same.
    await eventually(lambda: all(map(let_go, one.store._logs.values())))
    kept = sorted(log.length for log in one.store._logs.values())
    rest = await resumed(two, first[-1].id, name)
    whole = substance([*first, *events_of(rest.text)])
    assert [choice["text"] for choice in whole["choices"].values()] == [WORDS] * 2
    assert whole["usage"]["completion_tokens"] == 2 * len(words)
    assert (whole["seed"], whole["done"], len(whole["envelope"])) == (5, 1, 1)
    assert sorted(len(asked.committed_token_ids) for asked in two.fake.requests) == kept
    assert kept[-1] > 2
    assert sorted(asked.sampling.seed for asked in two.fake.requests) == [5, 6]
    values = values_of((await two.http.get("/metrics")).text)
    assert values['slipstream:generations_resumed_total{way="event_id"}'] == 1


async def test_a_log_is_taken_from_a_gateway_that_still_runs(pair, ids, eventually):
    """The new run's fence keeps the old one's entries out; its own client goes on undisturbed, and
    the log holds every token once."""
    one, two = pair
    words = ids(WORDS)
    one.fake.behaviour = two.fake.behaviour = FakeBehaviour(words)
    go_on = held(one.fake, 8)
    body = {"model": "tiny-chat", "prompt": "x", "stream": True, "seed": 1}
    async with one.http.stream("POST", "/v1/completions", json=body) as response:
        lines = response.aiter_lines()
        begun = [await anext(lines) for _ in range(6)]
        first = events_of("\n".join(begun))
        rest = await resumed(two, first[-1].id, first[0].data["id"])
        go_on.set()
        begun += [line async for line in lines]
    for found in ([*first, *events_of(rest.text)], events_of("\n".join(begun))):
        assert substance(found)["choices"][0]["text"] == WORDS
        assert substance(found)["usage"]["completion_tokens"] == len(words)
    (log,) = two.store._logs.values()
    assert (log.length, log.ended, log.fence) == (len(words), True, 2)
    again = await resumed(one, None, first[0].data["id"])
    assert substance(events_of(again.text))["choices"][0]["text"] == WORDS
    assert len(one.fake.requests) == 1


async def test_the_same_post_again(pair, ids):
    """A POST that is repeated with the last event's id gives the rest, with the seed that was drawn
    for the first; another body, or one without a stream, is refused."""
    one, two = pair
    for rig in pair:
        rig.fake.behaviour = FakeBehaviour(ids(WORDS))
    body = {"model": "tiny-chat", "prompt": "x", "stream": True}
    whole = events_of((await one.http.post("/v1/completions", json=body)).text)
    headers = {"Last-Event-ID": whole[3].id}

    async def again(**fields):
        return await two.http.post("/v1/completions", json=body | fields, headers=headers)

    options = {"include_usage": True}
    assert substance(events_of((await again()).text)) == substance(whole[4:])
    got = substance(events_of((await again(stream_options=options, timeout=9)).text))
    assert got["usage"] == substance(whole)["usage"]
    for fields, words in (({"prompt": "y"}, "another body"), ({"seed": 4}, "another body")):
        refused = await again(**fields)
        assert refused.status_code == 400
        assert words in refused.json()["error"]["message"]
    refused = (await again(stream=False)).json()["error"]
    assert (refused["param"], "stream" in refused["message"]) == ("Last-Event-ID", True)
    assert two.fake.requests == []


async def test_what_cannot_be_resumed(pair, ids):
    """Ids that are none, of nothing, of another request or of more than was asked for."""
    one, _ = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS))
    whole = events_of((await one.complete("x", stream=True, max_tokens=5)).text)
    name = whole[0].data["id"]
    for event_id, status in (
        ("nonsense", 400),
        (f"{name}/x", 400),
        (f"{name}/1,2", 400),
        (f"{name}/6", 400),
        ("cmpl-other/1", 400),
    ):
        answer = await resumed(one, event_id, name)
        assert answer.status_code == status, event_id
        assert answer.json()["error"]["param"] == "Last-Event-ID"
    for path in ("cmpl-other/events", "cmpl-other", f"{name}-0/events"):
        answer = await one.http.get(f"/v1/generations/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "generation_not_found")
    end = await resumed(one, whole[-2].id, name)
    assert end.text == "data: [DONE]\n\n"


async def test_a_generation_is_its_key_s(make_rig, tmp_path):
    """Another API key finds nothing: not the stream, not its state, nothing to delete."""
    file = tmp_path / "keys"
    mine, other = ({"Authorization": f"Bearer {keys.add(name, file)}"} for name in ("me", "you"))
    async with make_rig(api_keys=file) as rig:
        body = {"model": "tiny-chat", "prompt": "x", "stream": True}
        answer = await rig.http.post("/v1/completions", json=body, headers=mine)
        whole = events_of(answer.text)
        name = whole[0].data["id"]
        path = f"/v1/generations/{name}"
        headers = other | {"Last-Event-ID": whole[0].id}
        assert (
            await rig.http.post("/v1/completions", json=body, headers=headers)
        ).status_code == 404
        for method, where in (("GET", path), ("GET", f"{path}/events"), ("DELETE", path)):
            assert (await rig.http.request(method, where, headers=other)).status_code == 404
        assert (await rig.http.get(path, headers=mine)).json()["status"] == "completed"
        assert (await rig.http.get(path)).status_code == 401


async def test_ids_are_unique_whatever_clients_call_their_requests(pair, ids):
    """The first stream of a name has it; later ones, of whoever, get ids of their own, and nobody's
    record or log is touched."""
    _, two = pair
    headers = {"X-Request-Id": "mine"}
    texts = ["Hello", "world", "fox"]
    names = []
    for place, text in enumerate(texts):
        rig = pair[place % 2]
        rig.fake.behaviour = FakeBehaviour(ids(text))
        body = {"model": "tiny-chat", "prompt": "x", "stream": True}
        answer = await rig.http.post("/v1/completions", json=body, headers=headers)
        assert answer.headers["x-request-id"] == "mine"
        (name,) = {event.data["id"] for event in events_of(answer.text)[:-1]}
        names.append(name)
    assert names[0] == "cmpl-mine"
    assert len(set(names)) == 3
    for name, text in zip(names, texts, strict=True):
        found = substance(events_of((await resumed(two, None, name)).text))
        assert found["choices"][0]["text"] == text


async def test_without_resumption(make_rig, ids):
    """With --resume off nothing of a stream is kept, and who comes back is told so."""
    store = MemoryStore()
    async with make_rig(ids(WORDS), store=store, resume="off") as rig:
        answer = await rig.complete("x", stream=True)
        assert answer.headers["x-slipstream-resumable"] == "no"
        assert all(event.id is None for event in events_of(answer.text))
        assert (store._documents, store._logs) == ({}, {})
        refused = await resumed(rig, "cmpl-x/1", "cmpl-x")
        assert refused.status_code == 400
        assert "--resume" in refused.json()["error"]["message"]


async def test_what_is_not_kept(pair):
    """An answer that does not stream, or a request that is refused, costs the store nothing."""
    one, _ = pair
    assert (await one.complete("x")).status_code == 200
    for fields in ({"n": 1000}, {"temperature": -1}, {"max_tokens": 999}, {"max_tokens": -1}):
        assert (await one.complete("x", stream=True, **fields)).status_code == 400
    one.fake.behaviour = FakeBehaviour([5], error=Overloaded("full"))
    assert (await one.complete("x", stream=True)).status_code == 429
    assert one.store._logs == {}
    assert one.store._documents == {}


async def test_a_stream_that_is_refused_late_is_forgotten(pair, eventually):
    """One that waited, and was kept meanwhile, leaves nothing when it is refused after all."""
    one, _ = pair
    one.fake.behaviour = FakeBehaviour([5], first_delay=0.1, error=Overloaded("full"))
    assert (await one.complete("x", stream=True, n=2)).status_code == 429
    await eventually(lambda: not one.store._documents)
    await eventually(lambda: not one.store._logs)


async def test_a_stream_s_deadline_is_its_first_one(pair, ids, monkeypatch):
    """Time goes on while the client is away: what must still be decided is too late then, what is
    in the log is not."""
    one, two = pair
    words = ids(WORDS)
    one.fake.behaviour = two.fake.behaviour = FakeBehaviour(words)
    whole = events_of((await one.complete("x", stream=True, timeout=60)).text)
    name = whole[0].data["id"]
    now = time.time()
    later = SimpleNamespace(time=lambda: now + 60, monotonic=time.monotonic)
    monkeypatch.setattr(record, "time", later)
    assert substance(events_of((await resumed(two, whole[0].id, name)).text))["done"] == 1
    cut_logs(one.store, name, None)
    late = await resumed(two, whole[0].id, name)
    assert (late.status_code, late.json()["error"]["param"]) == (504, "timeout")


async def test_the_official_client_notices_nothing(pair, ids):
    """Ids are part of the format; the openai package takes them, and a deleted stream's error."""
    one, _ = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS))
    client = openai.AsyncOpenAI(base_url=f"{one.url}/v1", api_key="unused", max_retries=0)
    stream = await client.chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": "hi"}], stream=True, n=2
    )
    chunks = [chunk async for chunk in stream]
    assert stream.response.headers["x-slipstream-resumable"] == "yes"
    for index in range(2):
        own = [c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == index]
        assert "".join(own) == WORDS
    await client.close()


async def test_deleting_ends_a_stream_wherever_it_runs(pair, ids, eventually, monkeypatch):
    """The gateway that runs it finds out with its next entry or beat, tells its client and stops
    the verifier; nothing is left, and its id stays taken for a while."""
    monkeypatch.setattr(journals, "BEAT_SECONDS", 0.1)
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS), hang_after=4)
    for rig in (one, two):
        body = {"model": "tiny-chat", "prompt": "x", "stream": True}
        headers = {"X-Request-Id": "mine"}
        async with one.http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            lines = answer.aiter_lines()
            begun = events_of("\n".join([await anext(lines) for _ in range(6)]))
            name = begun[0].data["id"]
            deleted = await rig.http.delete(f"/v1/generations/{name}")
            assert deleted.json() == {"id": name, "object": "generation", "deleted": True}
            rest = events_of("\n".join([line async for line in lines if line] + [""]))
        assert substance(rest)["error"]["code"] == "cancelled"
        await eventually(lambda: not one.fake.running)
        assert (await rig.http.get(f"/v1/generations/{name}")).status_code == 404
        assert (await rig.http.delete(f"/v1/generations/{name}")).status_code == 404
        assert one.store._logs == {}
    assert name != "cmpl-mine"
