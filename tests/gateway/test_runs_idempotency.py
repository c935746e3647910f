"""The same key and request again are the same generation."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway import keys
from gateway.runs import follower
from slipstream.core.errors import InvalidParameter, Overloaded
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.conversing import Clock
from tests.gateway.kept import TroubledStore, events_of, substance
from tests.telemetry.scraped import values_of

WORDS = "Hello, world! Stop here and there."


@pytest.fixture(autouse=True)
def alive(monkeypatch):
    """A busy machine's pauses are no sign that a gateway is gone."""
    monkeypatch.setattr(follower, "STALE_SECONDS", 60.0)


@pytest.fixture
async def pair(make_rig):
    """Two gateways, each with a verifier, over one store."""
    store = TroubledStore()
    async with make_rig(store=store) as one, make_rig(store=store) as two:
        one.store = two.store = store
        yield one, two


async def ask(rig, key="k", headers=(), **fields):
    body = {"model": "tiny-chat", "prompt": "x", **fields}
    headers = {"Idempotency-Key": key, **dict(headers)}
    return await rig.http.post("/v1/completions", json=body, headers=headers)


def text_of(answer):
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        found = substance(events_of(answer.text))
        assert found["done"] == 1
        return found["choices"][0]["text"], found["usage"], found["seed"]
    body = answer.json()
    return body["choices"][0]["text"], body["usage"], body["seed"]


async def test_a_request_that_has_ended(pair, ids):
    """Repeated, anywhere, streaming or not, it gives the same answer without any work."""
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS), chunks=(3,))
    first = await ask(one, logprobs=2, n=2)
    again = await ask(two, logprobs=2, n=2)
    assert again.json() == first.json()
    stream = await ask(two, stream=True, logprobs=2, n=2, timeout=30, user="me")
    assert text_of(stream) == text_of(first)
    assert stream.headers["x-slipstream-resumable"] == "yes"
    assert len(one.fake.requests) == 2
    assert two.fake.requests == []
    values = values_of((await two.http.get("/metrics")).text)
    assert values['slipstream:generations_resumed_total{way="idempotency"}'] == 2


async def test_a_request_that_runs(pair, ids, eventually):
    """Those who join, at its gateway or another one, get what it gets as it comes, from one run."""
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS), delay=0.02)
    first = asyncio.create_task(ask(one, stream=True))
    await eventually(lambda: one.fake.running)
    joins = [ask(rig, stream=stream) for rig in (one, two) for stream in (False, True)]
    answers = [text_of(answer) for answer in await asyncio.gather(first, *joins)]
    assert answers == [answers[0]] * 5
    assert answers[0][0] == WORDS
    assert len(one.fake.requests) == 1
    assert two.fake.requests == []


async def test_many_at_the_same_moment(pair, ids):
    """Of requests that race for a new key one runs; all get its answer."""
    one, two = pair
    for rig in pair:
        rig.fake.behaviour = FakeBehaviour(ids(WORDS), delay=0.005)
    answers = await asyncio.gather(
        *(ask((one, two)[place % 2], stream=place % 3 == 0) for place in range(12))
    )
    assert len({text_of(answer)[2] for answer in answers}) == 1
    assert {text_of(answer)[0] for answer in answers} == {WORDS}
    assert len(one.fake.requests) + len(two.fake.requests) == 1


async def test_a_client_that_gives_up_and_asks_again(pair, ids, eventually):
    """Its work ends with its connection; asked again, elsewhere, it goes on at once from what was
    decided, and whoever had joined does, too."""
    one, two = pair
    words = ids(WORDS)
    one.fake.behaviour = FakeBehaviour(words, hang_after=9)
    two.fake.behaviour = FakeBehaviour(words)
    first = asyncio.create_task(ask(one))
    await eventually(lambda: one.fake.sent.total() == 9)
    joined = asyncio.create_task(ask(two, stream=True))
    await eventually(lambda: two.store.calls.get("log_read", 0) > 2)
    await eventually(lambda: any(log.length == 9 for log in two.store._logs.values()))
    assert two.fake.requests == []
    first.cancel()
    await eventually(lambda: one.fake.cancelled)
    assert text_of(await joined)[0] == WORDS
    assert text_of(await ask(two))[0] == WORDS
    (asked,) = two.fake.requests
    assert list(asked.committed_token_ids) == words[:9]
    assert asked.sampling.seed == one.fake.requests[0].sampling.seed


async def test_a_gateway_that_is_gone_without_a_word(make_rig, ids, eventually):
    """When the log is not beaten any more, one of those who follow it goes on, and only one."""
    clock = Clock()
    words, store, later = ids(WORDS), MemoryStore(clock), MemoryStore()
    async with make_rig(FakeBehaviour(words, hang_after=9), store=store) as one:
        first = asyncio.create_task(ask(one))
        await eventually(lambda: one.fake.sent.total() == 9)
        await eventually(lambda: any(log.length == 9 for log in store._logs.values()))
        # What the store holds if the gateway is killed here.
        later.__dict__.update({k: v for k, v in store.__dict__.items() if k != "_logs"})
        later._logs = {name: _copied(log) for name, log in store._logs.items()}
        first.cancel()
    clock.now += follower.STALE_SECONDS + 1
    async with make_rig(words, store=later) as two, make_rig(words, store=later) as three:
        rigs = (two, three)
        answers = await asyncio.gather(*(ask(rigs[n % 2], stream=n < 2) for n in range(4)))
        assert {text_of(answer)[0] for answer in answers} == {WORDS}
        asked = [*two.fake.requests, *three.fake.requests]
        assert [len(request.committed_token_ids) for request in asked] == [9]


def _copied(log):
    from dataclasses import replace

    return replace(log, entries=list(log.entries))


async def test_another_request_with_the_key(pair, ids):
    """It is refused, whatever differs that could change the answer; what could not is let be."""
    one, two = pair
    one.fake.behaviour = FakeBehaviour(ids(WORDS))
    first = await ask(one, temperature=0.5)
    for fields in (
        {"prompt": "y"},
        {"temperature": 0.6},
        {"seed": 1},
        {"n": 2},
        {"logprobs": 0},
        {"max_tokens": 3},
        {"stop": "o"},
        {"logit_bias": {"5": 1}},
        {"background": True},
    ):
        refused = await ask(two, **{"temperature": 0.5, **fields})
        assert refused.status_code == 422, fields
        assert refused.json()["error"]["code"] == "idempotency_conflict"
    chat = {"model": "tiny-chat", "messages": [{"role": "user", "content": "x"}]}
    headers = {"Idempotency-Key": "k"}
    refused = await two.http.post("/v1/chat/completions", json=chat, headers=headers)
    assert refused.status_code == 422
    same = await ask(two, temperature=0.5, priority=3, speculative=False, cache_salt="s", n=None)
    assert text_of(same) == text_of(first)


async def test_keys_that_are_none(pair):
    """Empty, too long, or with characters beyond printable ASCII: refused before anything runs."""
    one, _ = pair
    for key in ("", "x" * 256, "é", "a\tb"):
        refused = await ask(one, key=key.encode())
        assert refused.status_code == 400, key
        assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert one.fake.requests == []
    for key in ("x" * 255, "a b/c", "~!"):
        assert (await ask(one, key=key)).status_code == 200


async def test_a_key_is_its_owner_s(make_rig, tmp_path, ids):
    """The same key of two API keys are two generations."""
    file = tmp_path / "keys"
    mine, other = ({"Authorization": f"Bearer {keys.add(name, file)}"} for name in ("me", "you"))
    async with make_rig(ids(WORDS), api_keys=file) as rig:
        first = await ask(rig, headers=mine)
        second = await ask(rig, headers=other)
        assert first.json()["id"] != second.json()["id"]
        assert (await ask(rig, headers=mine)).json()["id"] == first.json()["id"]
        assert (await ask(rig, headers=other, prompt="y")).status_code == 422


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(Overloaded("full"), 429), (InvalidParameter("top_k is odd", param="top_k"), 400)],
)
async def test_a_failure_leaves_the_key(pair, ids, eventually, stream, error, status):
    """What is refused is told to all who wait for it, and the next try is a new one."""
    one, two = pair
    gate = asyncio.Event()

    async def refuse(*_):
        await gate.wait()
        raise error
        yield

    one.fake._respond = refuse
    first = asyncio.create_task(ask(one, stream=stream))
    await eventually(lambda: one.fake.running)
    joining = asyncio.create_task(ask(two, stream=stream))
    await eventually(lambda: two.store.calls.get("log_read", 0) > 2)
    gate.set()
    joined = await joining
    assert (joined.status_code, (await first).status_code) == (status, status)
    assert joined.json()["error"] == (await first).json()["error"]
    assert two.fake.requests == []
    two.fake.behaviour = FakeBehaviour(ids(WORDS))
    assert text_of(await ask(two, stream=stream))[0] == WORDS
    assert (await ask(one, temperature=-1)).status_code == 422


async def test_a_bad_request_leaves_the_key(pair):
    """One that cannot be served at all takes no key and leaves nothing in the store."""
    one, _ = pair
    for fields in ({"temperature": -1}, {"max_tokens": 999}, {"prompt": []}):
        assert (await ask(one, **fields)).status_code == 400
    assert one.store._documents == {}
    assert (await ask(one)).status_code == 200


async def test_a_verifier_lost_on_the_way(pair, ids, eventually):
    """What had begun is not given up: the same key goes on with it, to the same tokens."""
    one, two = pair
    words = ids(WORDS)
    one.fake.behaviour = FakeBehaviour(words, error=Overloaded("full"), error_after=5)
    two.fake.behaviour = FakeBehaviour(words)
    lost = await ask(one)
    assert lost.status_code == 429
    assert text_of(await ask(two))[0] == WORDS
    assert list(two.fake.requests[0].committed_token_ids) == words[:5]


async def test_without_a_store_there_is_no_promise(pair, ids):
    """With the store down a request with a key is refused before anything runs, in time."""
    one, _ = pair
    for trouble in ("down", "hang", "lost"):
        for name in ("get", "put", "log_open"):
            one.store.trouble = {name: trouble}
            async with asyncio.timeout(10):
                answer = await ask(one, key=f"{trouble}-{name}")
            assert answer.status_code == 503, (trouble, name)
            assert answer.json()["error"]["code"] == "store_unavailable"
            assert answer.headers["retry-after"]
    assert one.fake.requests == []
    one.store.trouble = {}
    for trouble in ("down", "hang"):
        assert (await ask(one, key=f"{trouble}-get")).status_code == 200


@pytest.mark.parametrize("trouble", ["down", "hang", "lost"])
async def test_a_store_that_goes_while_others_follow(pair, ids, eventually, trouble):
    """Those who follow go on by themselves, to the same tokens; nobody waits for the store."""
    one, two = pair
    words = ids(WORDS)
    one.fake.behaviour = FakeBehaviour(words, hang_after=9)
    two.fake.behaviour = FakeBehaviour(words)
    first = asyncio.create_task(ask(one, stream=True))
    await eventually(lambda: any(log.length == 9 for log in one.store._logs.values()))
    joined = asyncio.create_task(ask(two, stream=True))
    reads = one.store.calls.get("log_read", 0)
    await eventually(lambda: one.store.calls.get("log_read", 0) > reads)
    one.store.all_calls(trouble)
    assert text_of(await joined)[0] == WORDS
    assert one.fake.running == 1
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
