from __future__ import annotations

import asyncio
import json

import openai
import pytest

from slipstream.core.errors import Overloaded
from slipstream.wire.fakes import FakeBehaviour
from tests.telemetry.scraped import values_of


def events(response) -> list:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    # An event's id follows its data.
    data = [line[6:].partition("\n")[0] for line in lines]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


async def test_chat_body(rig, ids):
    """A whole chat answer has OpenAI's fields, the seed, and the speculation block."""
    rig.fake.behaviour = FakeBehaviour([*ids("Hello, world!"), 2], chunks=(3, 1))
    count = len(ids("Hello, world!")) + 1
    response = await rig.chat("hi", seed=7, temperature=0.5)
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["completion_tokens"] == count
    assert body["usage"]["prompt_tokens"] == len(rig.fake.requests[0].prompt_token_ids)
    assert body["seed"] == 7
    assert rig.fake.cancelled == []
    block = body["metrics"]["speculative_decoding"]
    assert block["num_spec_steps"] == sum(block["acceptance_histogram"]) > 0
    assert block["draft_acceptance_rate"] == 1.0
    assert block["mean_acceptance_length"] > 2


async def test_chat_prompt_is_the_rendered_template(rig, ids, hf_tokenizers):
    """The verifier gets the chat template's text, special tokens once, parts joined."""
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    await rig.http.post(
        "/v1/chat/completions",
        json={"model": "tiny-chat", "messages": [{"role": "developer", "content": parts}]},
    )
    expected = "<|im_start|>system\nHello\nthere<|im_end|>\n<|im_start|>assistant\n"
    assert list(rig.fake.requests[0].prompt_token_ids) == ids(expected)
    await rig.complete("Hello")
    assert list(rig.fake.requests[1].prompt_token_ids) == [0, *ids("Hello")]


async def test_parameters_reach_the_verifier(rig):
    """Every sampling parameter arrives as it was sent."""
    await rig.complete(
        [5, 6],
        max_tokens=9,
        temperature=0.5,
        top_p=0.25,
        top_k=40,
        min_p=0.125,
        seed=11,
        stop_token_ids=[9],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias={"3": -100, "4": 2.5},
        ignore_eos=True,
        speculative=False,
        logprobs=2,
    )
    got = rig.fake.requests[0]
    assert list(got.prompt_token_ids) == [5, 6]
    sampling = got.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 40)
    assert (sampling.min_p, sampling.seed) == (0.125, 11)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.repetition_penalty == 1.25
    assert dict(sampling.logit_bias) == {3: -100, 4: 2.5}
    assert (got.stop.max_tokens, got.stop.ignore_eos) == (9, True)
    assert list(got.stop.stop_token_ids) == [9]
    assert (got.speculative, got.logprobs) == (False, 2)


async def test_defaults(rig):
    """No max_tokens means the context window for a chat and 16 for a completion."""
    await rig.chat()
    await rig.complete([5] * 6)
    await rig.complete([5] * 250)
    chat, short, long = rig.fake.requests
    assert chat.stop.max_tokens == 256 - len(chat.prompt_token_ids)
    assert (short.stop.max_tokens, long.stop.max_tokens) == (16, 6)
    assert not chat.HasField("speculative")
    assert not chat.HasField("logprobs")
    assert chat.sampling.seed != short.sampling.seed


async def test_stream_shape(rig, ids):
    """Chunks: the role, the text, the reason, the usage chunk, [DONE]."""
    rig.fake.behaviour = FakeBehaviour([*ids("Hello, world!"), 2])
    response = await rig.chat(stream=True, seed=3, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0] for chunk in chunks[1:-1]]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == "Hello, world!"
    assert [delta["finish_reason"] for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(ids("Hello, world!")) + 1
    assert chunks[-1]["seed"] == 3
    assert "speculative_decoding" in chunks[-1]["metrics"]


async def test_stream_without_usage_chunk(rig, ids):
    """Without include_usage the finish chunk is last and carries usage, seed and metrics."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello"))
    *chunks, done = events(await rig.complete("x", stream=True, seed=3))
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello"
    last = chunks[-1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (last["seed"], last["usage"]["completion_tokens"]) == (3, len(ids("Hello")))
    assert not any("usage" in chunk for chunk in chunks[:-1])


@pytest.mark.parametrize("chunks", [(1,), (2,), (5, 1), (100,)])
async def test_stop_string(rig, ids, decode, chunks, eventually):
    """A stop string ends the text before it, whatever the chunks, and cancels the verifier."""
    before, after = ids("Hello, wor"), ids("ld! Stop here and there")
    rig.fake.behaviour = FakeBehaviour([*before, *after, *[7] * 30], chunks=chunks, delay=0.002)
    body = (await rig.chat(stop=["d! Sto", "zzz"], stream=False)).json()
    assert body["choices"][0]["message"]["content"] == "Hello, worl"
    assert body["choices"][0]["finish_reason"] == "stop"
    full = [*before, *after]
    counted = body["usage"]["completion_tokens"]
    assert "d! Sto" in decode(full[:counted])
    assert "d! Sto" not in decode(full[: counted - 1])
    await eventually(lambda: rig.fake.running == 0)
    told = body["metrics"]["speculative_decoding"]
    # Only a verifier that had ended by itself could say what speculation did.
    assert (told is not None) == (chunks == (100,))
    if chunks != (100,):
        assert rig.fake.cancelled == [rig.fake.requests[0].request_id]


async def test_stop_token_has_no_text(rig, ids):
    """The token that ends a generation is counted and not shown."""
    word = ids("Hello")
    rig.fake.behaviour = FakeBehaviour([*word, 9, *word])
    body = (await rig.complete("x", stop_token_ids=[9])).json()
    assert body["choices"][0]["text"] == "Hello"
    assert body["usage"]["completion_tokens"] == len(word) + 1


async def test_several_choices(rig):
    """n choices of several prompts: indices, seeds that do not depend on the neighbours."""
    rig.fake.behaviour = FakeBehaviour(lambda prompt, params, i: 10 + params.seed % 50)
    body = (await rig.complete([[5], [6, 6]], n=2, seed=2**63 - 1, max_tokens=3)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    seeds = {(tuple(r.prompt_token_ids), r.sampling.seed) for r in rig.fake.requests}
    assert seeds == {(p, s) for p in [(5,), (6, 6)] for s in (2**63 - 1, 0)}
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert body["choices"][0]["text"] == body["choices"][2]["text"]
    assert body["choices"][0]["text"] != body["choices"][1]["text"]


async def test_streamed_choices_interleave(rig, ids):
    """With n > 1 every choice has its own role, text and reason in the stream."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello, world!"), delay=0.002)
    *chunks, _ = events(await rig.chat(n=3, stream=True))
    for index in range(3):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == "Hello, world!"
        assert own[-1]["finish_reason"] == "stop"
    assert [chunk for chunk in chunks if "usage" in chunk] == chunks[-1:]


async def test_logprobs(rig, ids, decode):
    """Log probabilities in both endpoints' shapes, with the bytes of each token."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello é"))
    count = len(ids("Hello é"))
    chat = (await rig.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]
    assert len(chat["content"]) == count
    assert b"".join(bytes(entry["bytes"]) for entry in chat["content"]) == "Hello é".encode()
    assert all(len(entry["top_logprobs"]) == 2 for entry in chat["content"])
    plain = (await rig.chat(logprobs=True)).json()["choices"][0]["logprobs"]
    assert [entry["top_logprobs"] for entry in plain["content"]] == [[]] * count
    legacy = (await rig.complete("x", logprobs=1)).json()["choices"][0]["logprobs"]
    assert len(legacy["tokens"]) == len(legacy["top_logprobs"]) == count
    assert legacy["token_logprobs"] == [-0.5] * count
    # A token's text begins where the text of those before it ends; half a character has none.
    before = [decode(ids("Hello é")[:place]).rstrip("\ufffd") for place in range(count)]
    assert legacy["text_offset"] == [len(text) for text in before]
    *chunks, _ = events(await rig.chat(logprobs=True, stream=True))
    parts = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert sum(len(part["content"]) for part in parts) == count


async def test_models_health_docs(rig):
    """The small endpoints answer."""
    listed = (await rig.http.get("/v1/models")).json()
    assert [entry["id"] for entry in listed["data"]] == ["tiny-chat"]
    assert (await rig.http.get("/v1/models/tiny-chat")).json()["max_model_len"] == 256
    health = await rig.http.get("/health")
    assert (health.status_code, health.content) == (200, b"")
    schema = (await rig.http.get("/openapi.json")).json()
    assert "messages" in schema["components"]["schemas"]["ChatRequest"]["properties"]
    assert (await rig.http.get("/docs")).status_code == 200


async def test_metrics(rig, ids):
    """Counters and histograms move with requests, under vLLM's names."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello, world! Hello"), chunks=(3,))
    await rig.chat()
    text = (await rig.http.get("/metrics")).text
    values = values_of(text)
    count = len(ids("Hello, world! Hello"))
    assert values["slipstream:generation_tokens_total"] == count
    assert values['slipstream:request_success_total{finished_reason="stop"}'] == 1
    assert values["slipstream:time_to_first_token_seconds_count"] == 1
    assert values["slipstream:e2e_request_latency_seconds_count"] == 1
    assert values["slipstream:num_requests_running"] == 0
    told = next(line for line in text.splitlines() if "HELP slipstream:num_requests_run" in line)
    assert "queue included" in told
    assert values["slipstream:spec_decode_num_accepted_tokens_total"] > 0
    assert values["slipstream:spec_decode_num_guess_tokens_total"] == 0
    assert values["slipstream:spec_decode_num_accepted_guess_tokens_total"] == 0
    first = values['slipstream:spec_decode_num_accepted_tokens_per_pos_total{position="0"}']
    assert first == values["slipstream:spec_decode_num_drafts_total"] > 0


async def test_official_client(rig, ids):
    """The openai package works unchanged, asynchronous, streaming or not."""
    rig.fake.behaviour = FakeBehaviour([*ids("Hello, world!"), 2])
    client = openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=0)
    messages = [{"role": "user", "content": "hi"}]
    answer = await client.chat.completions.create(
        model="tiny-chat", messages=messages, extra_body={"top_k": 5, "speculative": False}
    )
    assert answer.choices[0].message.content == "Hello, world!"
    # An answer can be sent back as it came.
    again = [*messages, answer.choices[0].message.model_dump(), *messages]
    stream = await client.chat.completions.create(
        model="tiny-chat", messages=again, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (text, chunks[-1].usage.completion_tokens) == ("Hello, world!", len(ids(text)) + 1)
    legacy = await client.completions.create(model="tiny-chat", prompt="hi")
    assert legacy.choices[0].text == "Hello, world!"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="other", messages=messages)
    assert missing.value.code == "model_not_found"
    assert (await client.models.list()).data[0].id == "tiny-chat"
    await client.close()


async def test_official_client_sync(rig, ids):
    """The same, synchronous, from a thread."""
    rig.fake.behaviour = FakeBehaviour([*ids("Hello, world!"), 2])

    def talk() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=0) as client:
            messages = [{"role": "user", "content": "hi"}]
            whole = client.chat.completions.create(model="tiny-chat", messages=messages)
            stream = client.completions.create(model="tiny-chat", prompt="x", stream=True)
            return whole.choices[0].message.content, "".join(c.choices[0].text for c in stream)

    assert await asyncio.to_thread(talk) == ("Hello, world!", "Hello, world!")


async def test_official_client_sees_stream_errors(rig, ids):
    """An error in mid-stream raises in the openai package; no [DONE] follows it."""
    behaviour = FakeBehaviour(ids("Hello, world!"), error=Overloaded("full"), error_after=3)
    rig.fake.behaviour = behaviour
    *_, last = events(await rig.chat(stream=True))
    assert last["error"]["code"] == "overloaded"
    client = openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="unused", max_retries=0)
    stream = await client.chat.completions.create(
        model="tiny-chat", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    with pytest.raises(openai.APIError, match="full"):
        _ = [chunk async for chunk in stream]
    await client.close()
