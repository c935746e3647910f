from __future__ import annotations

import asyncio
import json
import shutil

import pytest

CHAT = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}
BIG = 10**30

BAD_CHAT_FIELDS = [
    ({"temperature": "warm"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 2**64}, f"seed: must be an integer in [0, {2**63 - 1}]"),
    ({"seed": BIG}, "seed"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"max_tokens": BIG}, "max_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"1": 5, "01": -5}}, "logit_bias names token 1 twice"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop_token_ids": [2**40]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be in [0, 20]"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs must be in [0, 20]"),
    ({"stream_options": {"include_usage": True}}, "stream"),
    ({"stream": "yes"}, "stream"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"functions": [{}]}, "functions"),
    ({"audio": {}}, "audio"),
    ({"priority": 1.5}, "priority"),
    ({"priority": 2**31}, "priority"),
    ({"priority": -(2**70)}, "priority"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": "5"}, "timeout"),
    ({"timeout": 86401}, "timeout"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 257}, "cache_salt"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": True}, "best_of"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"nonsense": 1}, "nonsense"),
]


async def test_fields(rig):
    """Each wrong field gets 400 with OpenAI's error object, which names it; nothing is run."""
    for fields, name in BAD_CHAT_FIELDS:
        raw = json.dumps({**CHAT, **fields})
        response = await rig.http.post("/v1/chat/completions", content=raw)
        error = response.json()["error"]
        assert response.status_code == 400, (fields, error)
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        told = f"{error['param']} {error['message']}"
        assert name in told, (fields, error)
    assert rig.fake.requests == []


@pytest.mark.parametrize(
    "prompt", ["", [], [[]], [5, -1], [5, 600], [5, 2**70], [1.5], ["a", 5], None, {"a": 1}]
)
async def test_prompts(rig, prompt):
    """An empty or malformed prompt is refused by name. (An empty text has a begin token.)"""
    response = await rig.complete(prompt)
    if prompt == "":
        assert list(rig.fake.requests[0].prompt_token_ids) == [0]
        return
    assert response.status_code == 400
    assert "prompt" in response.json()["error"]["message"]
    assert rig.fake.requests == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b'{"model": "tiny-chat", "prompt": "\xff"}',
        b'{"model": "tiny-chat", "prompt": "\\ud800"}',
        b'{"model": "tiny-chat", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny-chat", "prompt": "x", "temperature": Infinity}',
        b'{"model": "tiny-chat", "prompt": "x", "temperature": 1e999}',
        b"[" * 100_000,
    ],
)
async def test_bodies_that_are_not_json(rig, raw):
    """Broken JSON, invalid UTF-8, NaN and deep nesting get 400 in OpenAI's shape."""
    response = await rig.http.post("/v1/completions", content=raw)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


async def test_harmless_fields(rig):
    """Fields that ask for nothing are accepted, and so are nulls."""
    harmless = {
        "tools": [],
        "tool_choice": None,
        "response_format": {"type": "text"},
        "best_of": 1,
        "store": True,
        "metadata": {"a": "b"},
        "user": "me",
        "temperature": None,
        "stop": None,
        "logprobs": None,
        "n": None,
        "top_k": -1,
        "modalities": ["text"],
    }
    assert (await rig.chat(**harmless)).status_code == 200
    assert (await rig.complete(suffix=None, echo=False, best_of=1)).status_code == 200
    for echo in (True, 0):
        assert (await rig.complete(echo=echo)).json()["error"]["param"] == "echo"


async def test_null_content_of_assistant(rig):
    """An assistant's null content is an empty text."""
    prompts = []
    for content in (None, ""):
        turns = [*CHAT["messages"], {"role": "assistant", "content": content}]
        body = {**CHAT, "messages": turns}
        assert (await rig.http.post("/v1/chat/completions", json=body)).status_code == 200
        prompts.append(rig.fake.requests[-1].prompt_token_ids)
    assert prompts[0] == prompts[1]


async def test_model_names(rig):
    """An unknown model is 404, a missing one 400."""
    other = await rig.http.post("/v1/completions", json={"model": "other", "prompt": "x"})
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    none = await rig.http.post("/v1/completions", json={"prompt": "x"})
    assert (none.status_code, none.json()["error"]["param"]) == (400, "model")
    assert (await rig.http.get("/v1/models/other")).status_code == 404


async def test_context_window(rig):
    """Beyond the context window the error says the numbers; the last token that fits is taken."""
    long = await rig.complete([5] * 256)
    assert long.json()["error"]["code"] == "context_length_exceeded"
    assert "256 tokens" in long.json()["error"]["message"]
    more = (await rig.complete([5] * 250, max_tokens=7)).json()["error"]
    assert more["param"] == "max_tokens"
    assert all(number in more["message"] for number in ("250", "7", "257", "256"))
    assert (await rig.complete([5] * 250, max_tokens=6)).status_code == 200


async def test_routes(rig):
    """Unknown routes and methods answer in OpenAI's shape."""
    missing = await rig.http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    method = await rig.http.get("/v1/chat/completions")
    assert (method.status_code, method.json()["error"]["code"]) == (405, "method_not_allowed")
    assert method.headers["allow"] == "POST"


async def test_body_limit(make_rig):
    """Bodies over the limit get 413, announced or chunked, without being read to the end."""
    async with make_rig(max_body_bytes=4096) as rig:
        fits = {"model": "tiny-chat", "prompt": [5] * 200}
        assert (await rig.http.post("/v1/completions", json=fits)).status_code == 200
        big = await rig.http.post("/v1/completions", content=b"x" * 4097)
        assert (big.status_code, big.json()["error"]["code"]) == (413, "request_too_large")
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.running.http_port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write((b"400\r\n" + b"x" * 1024 + b"\r\n") * 5)
        # The last chunk never comes: the answer does not wait for it.
        async with asyncio.timeout(20):
            assert b" 413 " in await reader.readline()
        writer.close()


async def test_template_refuses(make_rig, model_folder, tmp_path):
    """What a chat template refuses is the client's error; without a template chats are refused."""
    folder = tmp_path / "tiny-chat"
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    async with make_rig(model=folder) as rig:
        error = (await rig.chat()).json()["error"]
        assert (error["param"], "roles must alternate" in error["message"]) == ("messages", True)
    (folder / "chat_template.jinja").unlink()
    async with make_rig(model=folder) as rig:
        response = await rig.chat()
        assert response.status_code == 400
        assert "no chat template" in response.json()["error"]["message"]
        assert (await rig.complete()).status_code == 200
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "ab"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    async with make_rig(model=folder) as rig:
        await rig.chat()
        assert len(rig.fake.requests[0].prompt_token_ids) <= 2
