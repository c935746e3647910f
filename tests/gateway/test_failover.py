"""What a client gets when verifiers are lost under way: the bytes of an undisturbed run."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.course import Course, Past
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.transport import channel
from tests.gateway.conftest import EOS
from tests.gateway.pooled import core
from tests.telemetry.scraped import values_of

TEXT = "naïve 日本語 😀 Stop here, café"
LENGTH = 24
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.5}
BODIES = {
    "plain": {"prompt": "x"},
    "sampled": {"prompt": "x", "temperature": 1.0, "logit_bias": {"40": 2.0}, **PENALTIES},
    "logprobs": {"prompt": "x", "logprobs": 3},
    "stop string": {"prompt": "x", "stop": ["Stop h", "zzz"], "logprobs": 0},
    "character": {"prompt": "x", "stop": ["語"]},
    "stop token": {"prompt": "x", "stop_token_ids": [9]},
    "end of text": {"prompt": "end"},
    "three": {"prompt": "x", "n": 3, "logprobs": 1},
    "two prompts": {"prompt": ["x", "end"]},
    "chat": {
        "messages": [{"role": "user", "content": "x"}],
        "logprobs": True,
        "top_logprobs": 2,
    },
}
numbers = itertools.count()


class Cut:
    """Two verifiers that give the same tokens, and break where they are told to."""

    def __init__(self, rig, ids):
        self.rig = rig
        self._script = [*ids(TEXT), 9]
        self._ending = set(ids("end"))
        first, second = rig.fakes
        # Each break happens once for a request, at whichever of them.
        second._broken = first._broken

    def token(self, prompt, params, i):
        if i == 12 and self._ending & set(prompt):
            return EOS
        return self._script[(i + 5 * params.seed) % len(self._script)]

    def behave(self, chunks, breaks):
        behaviour = FakeBehaviour(self.token, chunks, breaks=breaks, cached=1, tells_stats=True)
        for fake in self.rig.fakes:
            fake.behaviour = behaviour
            fake.requests.clear()

    async def http(self, body):
        """What comes back; names of requests and times are written over."""
        name = f"r{next(numbers)}"
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        fields = {"model": "tiny-chat", "max_tokens": LENGTH, "seed": 0, **body}
        answer = await self.rig.http.post(path, json=fields, headers={"X-Request-Id": name})
        assert answer.status_code == 200, answer.text
        return re.sub(r'"created":\d+', '"created":0', answer.text.replace(name, "NAME"))

    async def grpc(self, n):
        name = f"r{next(numbers)}"
        request = gateway_pb2.GatewayServiceGenerateRequest(
            request_id=name,
            text="x",
            n=n,
            logprobs=2,
            sampling=types_pb2.SamplingParams(seed=0),
            stop=types_pb2.StopConditions(max_tokens=LENGTH),
            stop_strings=["here,"],
        )
        found = {index: [] for index in range(n)}
        async with channel(self.rig.grpc_address) as link:
            async for response in gateway_pb2_grpc.GatewayServiceStub(link).Generate(request):
                response.request_id = ""
                # Of the choices beside it others may have come before.
                request, _, cursor = response.event_id.partition("/")
                assert request == name
                response.event_id = cursor.split(",")[response.index]
                found[response.index].append(response.SerializeToString(deterministic=True))
        return found

    def resumed_right(self):
        """Every call went on behind the tokens of the ones before it, and says so."""
        for request in itertools.chain(*(fake.requests for fake in self.rig.fakes)):
            committed = request.committed_token_ids
            prompt, params = request.prompt_token_ids, request.sampling
            assert committed == [self.token(prompt, params, i) for i in range(len(committed))]
            assert request.resumed or not committed
            assert request.stop.max_tokens == LENGTH


def by_choice(text):
    """The events of each choice in order, and what is about all of them."""
    found = {}
    for event in text.strip().split("\n\n"):
        data = next(line[6:] for line in event.splitlines() if line.startswith("data: "))
        choices = [] if data == "[DONE]" else json.loads(data)["choices"]
        found.setdefault(choices[0]["index"] if choices else None, []).append(data)
    return found


@pytest.fixture
async def cut(make_rig, ids):
    async with make_rig(fakes=({}, {}), failover_timeout=20.0) as rig:
        yield Cut(rig, ids)


chunk_sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)
places = st.dictionaries(
    st.integers(0, LENGTH - 1),
    st.sampled_from(["internal", "cancelled", "end", "finish", "unavailable"]),
    min_size=1,
    max_size=4,
)
quick = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(
    chunks=chunk_sizes, breaks=places, kind=st.sampled_from(sorted(BODIES)), stream=st.booleans()
)
async def test_http_answers_are_those_of_an_undisturbed_run(cut, chunks, breaks, kind, stream):
    """Text, log probabilities, offsets, finish reasons, usage and statistics, byte for byte."""
    body = BODIES[kind] | (
        {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    )
    cut.behave(chunks, {})
    expected = await cut.http(body)
    cut.behave(chunks, breaks)
    found = await cut.http(body)
    cut.resumed_right()
    if stream and kind in ("three", "two prompts"):
        # Choices come in any order beside each other.
        assert by_choice(found) == by_choice(expected)
    else:
        assert found == expected


@settings(quick, max_examples=15)
@given(chunks=chunk_sizes, breaks=places, n=st.sampled_from([1, 3]))
async def test_grpc_answers_are_those_of_an_undisturbed_run(cut, chunks, breaks, n):
    """The same at the other door, message for message."""
    cut.behave(chunks, {})
    expected = await cut.grpc(n)
    cut.behave(chunks, breaks)
    assert await cut.grpc(n) == expected
    cut.resumed_right()


@pytest.mark.parametrize("stream", [False, True])
async def test_every_place(cut, stream):
    """A cut before each single token, and behind the last one, where only the end is missing."""
    body = {**BODIES["logprobs"], "stream": stream}
    cut.behave((1,), {})
    expected = await cut.http(body)
    for place in range(LENGTH + 1):
        cut.behave((1,), {place: "internal"})
        assert await cut.http(body) == expected, place
        cut.resumed_right()
        calls = [request for fake in cut.rig.fakes for request in fake.requests]
        # Nobody is asked for what is complete.
        assert len(calls) == (2 if place < LENGTH else 1)
    values = values_of((await cut.rig.http.get("/metrics")).text)
    assert values['slipstream:failovers_total{reason="connection"}'] == LENGTH
    assert values["slipstream:failover_pause_seconds_count"] == LENGTH


@pytest.mark.parametrize("kind", ["end of text", "stop token", "plain"])
async def test_a_last_word_that_is_lost(cut, kind):
    """Where all tokens came, the end is told with the right reason, usage and statistics."""
    cut.behave((5, 2), {})
    expected = await cut.http(BODIES[kind])
    count = json.loads(expected)["usage"]["completion_tokens"]
    cut.behave((5, 2), {count: "end"})
    assert await cut.http(BODIES[kind]) == expected
    assert sum(len(fake.requests) for fake in cut.rig.fakes) == 1


async def test_other_chunks_elsewhere(cut):
    """Where the next verifier cuts its messages otherwise, the answer is the same all the same, and
    the statistics are those of both."""
    body = BODIES["logprobs"]
    cut.behave((1,), {})
    expected = json.loads(await cut.http(body))
    first, second = cut.rig.fakes
    cut.behave((4,), {10: "unavailable"})
    second.behaviour = replace(first.behaviour, chunks=(3,), first_delay=0.01)
    # So that the first one is asked first.
    second.waiting = 50
    await cut.rig.tell()
    answer = json.loads(await cut.http(body))
    told = answer.pop("metrics")["speculative_decoding"]
    expected.pop("metrics")
    assert answer == expected
    # Two messages of four tokens, then one of a single token up to a border, then five of three.
    assert told["num_spec_steps"] == 7
    assert told["acceptance_histogram"] == [0, 0, 5, 2]


async def test_parameters_go_along(cut):
    """The call that goes on has the parameters, the seed and the name of the one that was lost."""
    body = {**BODIES["sampled"], "top_k": 7, "stop": ["zzz"], "priority": 3, "cache_salt": "s"}
    del body["temperature"]
    cut.behave((1,), {6: "internal"})
    await cut.http({**body, "seed": None, "timeout": 60})
    [first, second] = sorted(
        (request for fake in cut.rig.fakes for request in fake.requests),
        key=lambda request: len(request.committed_token_ids),
    )
    assert 0 < second.deadline_seconds < first.deadline_seconds < 60
    assert first.sampling.HasField("seed")
    for field in ("committed_token_ids", "resumed", "deadline_seconds"):
        first.ClearField(field)
        second.ClearField(field)
    assert first == second


async def test_sums_at_another_gateway(tokenizer):
    """What one gateway heard, another one goes on from: the last word speaks of both calls, and of
    the prompt's cached tokens as the first one found them."""
    behaviour = FakeBehaviour(list(range(50, 70)), (4, 1), cached=1, tells_stats=True)
    async with core(tokenizer, behaviour, [{}]) as made:
        *_, expected = [piece async for piece in made.pieces(max_tokens=18)]
        messages = []
        course = Course(heard=lambda _, message: messages.append(copy(message)))
        async with contextlib.aclosing(made.pieces(course, max_tokens=18)) as pieces:
            async for piece in pieces:
                if piece.completion_tokens == 9:
                    break
        made.fakes[0].behaviour = replace(behaviour, cached=2)
        course = Course(pasts=[Past(tuple(messages), 9)])
        *_, last = [piece async for piece in made.pieces(course, max_tokens=18)]
        assert last.stats == expected.stats
        assert (last.cached_tokens, last.completion_tokens) == (1, 18)


def copy(message):
    made = type(message)()
    made.CopyFrom(message)
    return made
