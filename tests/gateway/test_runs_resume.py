"""A stream that is cut anywhere and resumed says what an undisturbed one says, no less, no more."""

from __future__ import annotations

import asyncio

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import keys
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from tests.gateway.conftest import EOS
from tests.gateway.kept import cut_logs, event_of, events_of, substance, without_chance
from tests.telemetry.scraped import values_of

MANY = settings(
    max_examples=40,
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


words = st.lists(st.integers(3, 400), min_size=0, max_size=14)


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
