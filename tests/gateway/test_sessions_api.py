from __future__ import annotations

import asyncio
import contextlib
import json
import random

import grpc
import openai
import pytest

from gateway import keys
from slipstream.core.errors import InvalidParameter, SessionConflict, SessionNotFound
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeBehaviour
from slipstream.wire.proto import gateway_pb2, gateway_pb2_grpc, types_pb2
from slipstream.wire.status import error_of
from slipstream.wire.transport import channel
from tests.gateway.conftest import TEMPLATE
from tests.gateway.conversing import FaultyStore

TRIMMING = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def drawn(prompt, params, place):
    """A token that depends on all of the prompt and on the seed; now and then the end."""
    token = random.Random(f"{list(prompt)} {params.seed} {place}").randrange(0, 268)
    return 2 if token < 20 else token


def chunks(response) -> list:
    lines = [line for line in response.text.split("\n") if line.startswith("data: ")]
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


def said(response) -> tuple[str, dict]:
    """The text of an answer, and its last word's `session`."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        found = chunks(response)
        choices = [each["choices"][0] for each in found if each["choices"]]
        pieces = [each.get("text") or each.get("delta", {}).get("content", "") for each in choices]
        return "".join(pieces), found[-1].get("session")
    body = response.json()
    choice = body["choices"][0]
    return choice.get("text", choice.get("message", {}).get("content")), body.get("session")


@pytest.fixture
def folder(tmp_path, hf_tokenizers):
    def make(tokenizer: str, template: str):
        hf_tokenizers[tokenizer].save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "chat_template.jinja").write_text(template)
        return tmp_path

    return make


@pytest.mark.parametrize("tokenizer", ["byte-level", "llama", "gemma", "metaspace"])
@pytest.mark.parametrize("template", [TEMPLATE, TRIMMING])
async def test_each_prompt_is_the_stateless_one(make_rig, folder, tokenizer, template):
    """A session's prompts and answers equal those of a client that sends all of it each time."""
    model = folder(tokenizer, template)
    settings = {"model": model, "served_model_name": "tiny-chat"}
    last = 9 if tokenizer == "metaspace" else 268

    def token(prompt, params, place):
        return drawn(prompt, params, place) % (last + 1)

    async with make_rig(token, context_length=4096, **settings) as rig:
        messages, prompt = [], ""
        opening = [{"role": "system", "content": " the\u65e5 "}, {"role": "user", "content": "a"}]
        for count in range(5):
            new = opening if count == 0 else [{"role": "user", "content": f" b{count} ab \u00e9"}]
            fields = {"seed": count, "temperature": 1.0, "max_tokens": 12, "stream": count % 2 == 1}
            session = {"session_id": "s", "session_turn": count}
            messages += new
            kept, state = said(await rig.chat(**fields, **session, messages=new))
            plain, none = said(await rig.chat(**fields, messages=messages))
            assert state == {"id": "s", "turns": count + 1, "stored": True, "detail": ""}
            assert none is None
            messages.append({"role": "assistant", "content": plain})
            text, session = f"b{count} the ", {"session_id": "t", "session_turn": count}
            prompt += text
            kept_text, _ = said(await rig.complete(text, **fields, **session))
            plain_text, _ = said(await rig.complete(prompt, **fields))
            prompt += plain_text
            assert (kept, kept_text) == (plain, plain_text)
        sent = [list(request.prompt_token_ids) for request in rig.fake.requests]
        assert sent[::4] == sent[1::4]
        assert sent[2::4] == sent[3::4]
        lengths = [len(prompt) for prompt in sent[2::4]]
        assert sorted(set(lengths)) == lengths
        assert lengths[-1] > 10


async def test_token_ids_are_appended(rig):
    """A session of ids goes on with what was generated, but for the token that ended it."""
    rig.fake.behaviour = FakeBehaviour([9, 8, 2])
    await rig.complete([5, 6], session_id="s", session_turn=0)
    rig.fake.behaviour = FakeBehaviour([9, 8, 2, 7])
    await rig.complete([[7]], session_id="s", session_turn=1, ignore_eos=True, max_tokens=3)
    await rig.complete([4], session_id="s", session_turn=2)
    expected = [5, 6, 9, 8, 7, 9, 8, 2, 4]
    assert list(rig.fake.requests[-1].prompt_token_ids) == expected
    body = (await rig.http.get("/v1/sessions/s")).json()
    assert body["kind"] == "token_ids"
    assert [turn["input"] for turn in body["turns"]] == [[5, 6], [7], [4]]
    assert [turn["output"] for turn in body["turns"]][:2] == [[9, 8], [9, 8, 2]]


async def test_a_stop_string_is_not_history(rig, ids):
    """What becomes history is the text that the client got, whatever the tokens were."""
    rig.fake.behaviour = FakeBehaviour(ids("Hello, world! Hello"))
    text, _ = said(await rig.chat(stop="wor", session_id="s", session_turn=0))
    assert text == "Hello, "
    short, _ = said(await rig.chat(max_tokens=2, session_id="s", session_turn=1))
    body = (await rig.http.get("/v1/sessions/s")).json()
    assert [turn["output"] for turn in body["turns"]] == ["Hello, ", short]
    assert [turn["finish_reason"] for turn in body["turns"]] == ["stop", "length"]


async def test_session_routes(rig):
    """Create, read, list, fork and delete, in the documented shapes."""
    made = (await rig.http.post("/v1/sessions", json={"id": "s", "ttl": 60})).json()
    assert (made["id"], made["object"], made["kind"]) == ("s", "session", None)
    assert (made["num_turns"], made["turns"]) == (0, [])
    assert made["expires"] == made["created"] + 60
    random_id = (await rig.http.post("/v1/sessions")).json()["id"]
    assert random_id.startswith("sess-")
    answer = await rig.chat("hi", session_id="s", seed=7, temperature=0)
    body = (await rig.http.get("/v1/sessions/s")).json()
    [turn] = body["turns"]
    assert turn["request_id"] == answer.json()["id"]
    assert turn["input"] == [{"role": "user", "content": "hi"}]
    assert turn["output"] == answer.json()["choices"][0]["message"]["content"]
    assert turn["usage"] == answer.json()["usage"]
    assert (turn["finish_reason"], turn["seed"]) == ("stop", 7)
    fork = await rig.http.post("/v1/sessions/s/fork", json={"turns": 1, "id": "f"})
    assert fork.json()["turns"] == body["turns"]
    listed = (await rig.http.get("/v1/sessions", params={"limit": 2})).json()
    assert (listed["object"], listed["has_more"]) == ("list", True)
    assert [each["id"] for each in listed["data"]] == sorted(["f", "s", random_id])[:2]
    assert all("turns" not in each for each in listed["data"])
    rest = (await rig.http.get("/v1/sessions", params={"after": listed["data"][-1]["id"]})).json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    gone = (await rig.http.delete("/v1/sessions/s")).json()
    assert gone == {"id": "s", "object": "session.deleted", "deleted": True}
    again = await rig.http.delete("/v1/sessions/s")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "session_not_found")


WRONG_CHATS = [
    ({"session_id": "gone"}, 404, "session_id"),
    ({"session_id": "gone", "session_turn": 3}, 404, "session_id"),
    ({"session_id": "s", "session_turn": 0}, 409, "session_turn"),
    ({"session_id": "a/b", "session_turn": 0}, 400, "session_id"),
    ({"session_id": ""}, 400, "session_id"),
    ({"session_id": 5}, 400, "session_id"),
    ({"session_turn": 0}, 400, "session_turn"),
    ({"session_id": "s", "session_turn": -1}, 400, "session_turn"),
    ({"session_id": "s", "session_turn": 2**32}, 400, "session_turn"),
    ({"session_id": "s", "session_turn": True}, 400, "session_turn"),
    ({"session_id": "s", "n": 2}, 400, "n"),
    ({"session_id": "s", "max_tokens": 5000}, 400, "max_tokens"),
    ({"session_id": "s", "temperature": -1}, 400, "temperature"),
    (
        {"session_id": "s", "messages": [{"role": "user", "content": "x", "name": "bob"}]},
        400,
        "messages.0.name",
    ),
    ({"session_id": "s", "messages": []}, 400, "messages"),
]


async def test_wrong_chats(rig):
    """What cannot be a turn is refused with the field's name, and leaves the session as it was."""
    await rig.chat("hi", session_id="s", session_turn=0)
    for fields, status, param in WRONG_CHATS:
        response = await rig.chat(**fields)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (status, param), error
        assert (response.headers.get("x-should-retry") == "false") is (status == 409)
    following = await rig.chat("hi", session_id="s", session_turn=1)
    assert following.status_code == 200
    assert len(rig.fake.requests) == 2


WRONG_PROMPTS = [
    (["a", "b"], "t", "prompt"),
    ([], "t", "prompt"),
    ([[1], [2]], "t", "prompt"),
    ([-1], "t", "prompt"),
    ([2**33], "t", "prompt"),
    ([5], "text", "session_id"),
    ("x", "chat", "session_id"),
]


async def test_wrong_prompts(rig):
    """A turn has one prompt, of the kind that its session began with."""
    await rig.chat("hi", session_id="chat", session_turn=0)
    await rig.complete("hi", session_id="text", session_turn=0)
    for prompt, session_id, param in WRONG_PROMPTS:
        turn = {} if session_id != "t" else {"session_turn": 0}
        response = await rig.complete(prompt, session_id=session_id, **turn)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert len((await rig.http.get("/v1/sessions")).json()["data"]) == 2


WRONG_SESSIONS = [
    ("POST", "/v1/sessions", {"id": "a b"}, 400, "id"),
    ("POST", "/v1/sessions", {"id": ""}, 400, "id"),
    ("POST", "/v1/sessions", {"id": "s"}, 409, "id"),
    ("POST", "/v1/sessions", {"ttl": 0}, 400, "ttl"),
    ("POST", "/v1/sessions", {"ttl": 1e12}, 400, "ttl"),
    ("POST", "/v1/sessions", {"ttl": "60"}, 400, "ttl"),
    ("POST", "/v1/sessions", {"color": 1}, 400, "color"),
    ("POST", "/v1/sessions", [], 400, None),
    ("GET", "/v1/sessions/none", None, 404, "id"),
    ("GET", "/v1/sessions/a%20b", None, 400, "id"),
    ("GET", "/v1/sessions?limit=0", None, 400, "limit"),
    ("GET", "/v1/sessions?limit=101", None, 400, "limit"),
    ("GET", "/v1/sessions?limit=x", None, 400, "limit"),
    ("GET", "/v1/sessions?after=a%2Fb", None, 400, "after"),
    ("POST", "/v1/sessions/none/fork", {}, 404, "id"),
    ("POST", "/v1/sessions/s/fork", {"turns": 2}, 400, "turns"),
    ("POST", "/v1/sessions/s/fork", {"turns": -1}, 400, "turns"),
    ("POST", "/v1/sessions/s/fork", {"turns": True}, 400, "turns"),
    ("POST", "/v1/sessions/s/fork", {"id": "s"}, 409, "id"),
    ("DELETE", "/v1/sessions/none", None, 404, "id"),
    ("PUT", "/v1/sessions/s", {}, 405, None),
]


async def test_wrong_session_requests(rig):
    """Errors have OpenAI's shape and name the field."""
    await rig.chat("hi", session_id="s", session_turn=0)
    for method, path, body, status, param in WRONG_SESSIONS:
        response = await rig.http.request(method, path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (status, param), (path, error)
        assert error["type"] == "invalid_request_error"


async def test_context_overflow(make_rig):
    """A turn beyond the window says how much of it is history, and leaves the session usable."""
    async with make_rig(context_length=64) as rig:
        await rig.chat("hi " * 5, session_id="s", session_turn=0)
        for text, words in (("x " * 40, "the history of session"), ("x" * 2000, "session")):
            response = await rig.chat(text, session_id="s")
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
            assert words in error["message"]
            assert "fork" in error["message"]
        assert (await rig.chat("x", session_id="s")).status_code == 200


async def test_size_limit(make_rig):
    """A session over --max-session-bytes is refused before anything is generated."""
    async with make_rig(max_session_bytes=1024, context_length=4096) as rig:
        response = await rig.chat("x" * 1100, session_id="s", session_turn=0)
        assert response.status_code == 400
        assert "--max-session-bytes" in response.json()["error"]["message"]
        assert rig.fake.requests == []


async def test_two_writers_over_http(rig, eventually):
    """The second gets 409 with a time to come back; the first ends well, and frees the session."""
    rig.fake.behaviour = FakeBehaviour([5, 6], hang_after=1)
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    session = {"session_id": "s", "session_turn": 0}
    async with rig.http.stream("POST", "/v1/chat/completions", json={**body, **session}) as first:
        assert first.status_code == 200
        second = await rig.chat(session_id="s")
        assert second.status_code == 409
        assert second.json()["error"]["code"] == "session_conflict"
        assert 1 <= int(second.headers["retry-after"]) <= 10
    # It went away: its turn, and the session that it would have made, are gone soon.
    for _ in range(1000):
        gone = await rig.http.get("/v1/sessions/s")
        if gone.status_code == 404:
            break
        await asyncio.sleep(0.01)
    assert gone.status_code == 404
    rig.fake.behaviour = FakeBehaviour([5, 6])
    assert said(await rig.chat(**session))[1]["stored"]


async def test_several_gateways(make_rig):
    """Turns may go to any gateway of one store; nothing that one remembers is stale."""
    store = MemoryStore()
    async with make_rig(drawn, store=store) as one, make_rig(drawn, store=store) as other:
        for count in range(4):
            rig = (one, other)[count % 2]
            response = await rig.chat(f"q{count}", session_id="s", session_turn=count, max_tokens=4)
            assert said(response)[1]["turns"] == count + 1
        assert (await one.http.get("/v1/sessions/s")).json()["num_turns"] == 4
        await other.http.delete("/v1/sessions/s")
        assert (await one.chat(session_id="s")).status_code == 404


async def test_keys_own_their_sessions(make_rig, tmp_path):
    """Another key neither sees a session nor learns of it, over HTTP and gRPC."""
    path = tmp_path / "keys"
    alice, bob = [{"Authorization": f"Bearer {keys.add(name, path)}"} for name in ("alice", "bob")]
    async with make_rig(api_keys=path) as rig:
        made = await rig.http.post("/v1/sessions", json={"id": "s"}, headers=alice)
        assert made.status_code == 200
        assert (await rig.http.get("/v1/sessions/s")).status_code == 401
        body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "x"}]}
        for method, url, content in (
            ("GET", "/v1/sessions/s", None),
            ("DELETE", "/v1/sessions/s", None),
            ("POST", "/v1/sessions/s/fork", {}),
            ("POST", "/v1/chat/completions", {**body, "session_id": "s"}),
        ):
            refused = await rig.http.request(method, url, json=content, headers=bob)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                404,
                "session_not_found",
            )
        assert (await rig.http.get("/v1/sessions", headers=bob)).json()["data"] == []
        async with channel(rig.grpc_address) as link:
            stub = gateway_pb2_grpc.GatewayServiceStub(link)
            metadata = (("authorization", bob["Authorization"]),)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.GetSession(
                    gateway_pb2.GetSessionRequest(id="s"), timeout=5, metadata=metadata
                )
            assert isinstance(error_of(raised.value), SessionNotFound)
        assert (await rig.http.get("/v1/sessions/s", headers=alice)).status_code == 200


async def test_store_down(make_rig):
    """Without the store: first turns are served and say so, the rest gets 503 and when to retry."""
    store = FaultyStore(MemoryStore(), {})
    async with make_rig(store=store) as rig:
        await rig.chat("hi", session_id="s", session_turn=0)
        store.faults = dict.fromkeys(range(10_000), "before")
        for stream in (False, True):
            _, state = said(await rig.chat(session_id="n", session_turn=0, stream=stream))
            assert (state["stored"], state["turns"]) == (False, 1)
            assert "does not answer" in state["detail"]
        for refused in (
            await rig.chat(session_id="s"),
            await rig.chat(session_id="s", session_turn=1),
            await rig.http.get("/v1/sessions"),
            await rig.http.get("/v1/sessions/s"),
            await rig.http.post("/v1/sessions"),
            await rig.http.delete("/v1/sessions/s"),
        ):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "store_unavailable"
            assert "retry-after" in refused.headers
        assert (await rig.chat("hi")).status_code == 200
        store.faults = {}
        assert said(await rig.chat(session_id="s", session_turn=1))[1]["stored"]


async def test_store_lost_before_the_commit(make_rig):
    """An answer that could not be stored is delivered whole, and says so."""
    store = FaultyStore(MemoryStore(), {})

    def token(prompt, params, place):
        store.faults = dict.fromkeys(range(10_000), "before")
        return 5

    async with make_rig(token, store=store) as rig:
        text, state = said(await rig.chat(session_id="s", session_turn=0, max_tokens=3))
        assert text
        assert (state["stored"], state["turns"]) == (False, 1)
        assert "may be lost" in state["detail"]


async def test_openai_client(rig):
    """The official client reaches sessions with extra_body, and does not repeat a wrong turn."""
    rig.fake.behaviour = FakeBehaviour(drawn)
    async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="x") as client:
        for count in range(3):
            session = {"session_id": "s", "session_turn": count}
            stream = await client.chat.completions.create(
                model="tiny-chat",
                messages=[{"role": "user", "content": f"q{count}"}],
                max_tokens=5,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=session,
            )
            async for chunk in stream:
                last = chunk
            assert last.session["turns"] == count + 1
        with pytest.raises(openai.ConflictError, match="has 3 turns, not 1"):
            await client.chat.completions.create(
                model="tiny-chat",
                messages=[{"role": "user", "content": "q"}],
                extra_body={"session_id": "s", "session_turn": 1},
            )
    assert len(rig.fake.requests) == 3


async def test_openapi(rig):
    """The document names the routes, their bodies and the new fields."""
    document = (await rig.http.get("/openapi.json")).json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    assert set(paths["/v1/sessions"]) == {"get", "post"}
    assert set(paths["/v1/sessions/{session_id}"]) == {"get", "delete"}
    names = [each["name"] for each in paths["/v1/sessions"]["get"]["parameters"]]
    assert names == ["after", "limit"]
    body = paths["/v1/sessions/{session_id}/fork"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ForkSession")
    assert not body["required"]
    assert {"session_id", "session_turn"} <= set(schemas["ChatRequest"]["properties"])


@contextlib.asynccontextmanager
async def stub_of(rig):
    async with channel(rig.grpc_address) as link:
        yield gateway_pb2_grpc.GatewayServiceStub(link)


async def test_grpc_turns(rig):
    """Over gRPC each kind's prompts equal the stateless ones; the last response has the state."""
    rig.fake.behaviour = FakeBehaviour(drawn)

    async def generate(stub, **fields):
        request = gateway_pb2.GatewayServiceGenerateRequest(
            sampling=types_pb2.SamplingParams(seed=3, temperature=1),
            stop=types_pb2.StopConditions(max_tokens=6),
            **fields,
        )
        responses = [response async for response in stub.Generate(request, timeout=10)]
        ids = [token.id for response in responses for token in response.tokens]
        kept = ids[:-1] if ids[-1] == 2 else ids
        return "".join(response.text for response in responses), kept, responses[-1]

    async with stub_of(rig) as stub:
        text, ids, messages = "", [], []
        for count in range(3):
            new = gateway_pb2.ChatMessage(role="developer" if count == 1 else "user", content="hi")
            messages.append(new)
            text += " the"
            ids += [9, count + 5]
            session = {"session_turn": count}
            chat = gateway_pb2.Chat(messages=[new])
            _, _, last = await generate(stub, chat=chat, session_id="c", **session)
            assert last.session == gateway_pb2.SessionState(id="c", turns=count + 1, stored=True)
            await generate(stub, text=" the", session_id="t", **session)
            some = gateway_pb2.TokenIds(ids=[9, count + 5])
            await generate(stub, token_ids=some, session_id="i", **session)
            answer, _, last = await generate(stub, chat=gateway_pb2.Chat(messages=messages))
            assert not last.HasField("session")
            messages.append(gateway_pb2.ChatMessage(role="assistant", content=answer))
            text += (await generate(stub, text=text))[0]
            ids += (await generate(stub, token_ids=gateway_pb2.TokenIds(ids=ids)))[1]
        sent = [list(request.prompt_token_ids) for request in rig.fake.requests]
        for kind in range(3):
            assert sent[kind::6] == sent[kind + 3 :: 6]
        found = await stub.GetSession(gateway_pb2.GetSessionRequest(id="c"), timeout=5)
        assert [turn.chat.messages[0].role for turn in found.session.turns] == [
            "user",
            "developer",
            "user",
        ]
        over_http = (await rig.http.get("/v1/sessions/i")).json()
        assert over_http["num_turns"] == 3


async def test_grpc_sessions(rig):
    """The five RPCs, and their errors as statuses."""
    async with stub_of(rig) as stub:
        made = await stub.CreateSession(
            gateway_pb2.CreateSessionRequest(id="s", ttl_seconds=60), timeout=5
        )
        assert made.session.expires_unix == made.session.created_unix + 60
        await rig.chat("hi", session_id="s")
        fork = await stub.ForkSession(
            gateway_pb2.ForkSessionRequest(id="s", turns=0, new_id="f"), timeout=5
        )
        assert fork.session.num_turns == 0
        listed = await stub.ListSessions(gateway_pb2.ListSessionsRequest(limit=1), timeout=5)
        assert [session.id for session in listed.sessions] == ["f"]
        assert listed.has_more
        await stub.DeleteSession(gateway_pb2.DeleteSessionRequest(id="f"), timeout=5)
        chat = gateway_pb2.Chat(messages=[gateway_pb2.ChatMessage(role="wizard", content="x")])
        Request = gateway_pb2.GatewayServiceGenerateRequest  # noqa: N806
        for call, kind, code in (
            (
                stub.GetSession(gateway_pb2.GetSessionRequest(id="f"), timeout=5),
                SessionNotFound,
                grpc.StatusCode.NOT_FOUND,
            ),
            (
                stub.CreateSession(gateway_pb2.CreateSessionRequest(id="s"), timeout=5),
                SessionConflict,
                grpc.StatusCode.ABORTED,
            ),
            (
                stub.CreateSession(gateway_pb2.CreateSessionRequest(id="ü"), timeout=5),
                InvalidParameter,
                grpc.StatusCode.INVALID_ARGUMENT,
            ),
            *(
                (
                    stub.Generate(Request(session_id="s", **fields), timeout=5).read(),
                    kind,
                    code,
                )
                for fields, kind, code in (
                    ({"text": "x"}, InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT),
                    ({}, InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT),
                    ({"chat": chat}, InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT),
                    ({"text": "x", "n": 2}, InvalidParameter, grpc.StatusCode.INVALID_ARGUMENT),
                    (
                        {"text": "x", "session_turn": 5},
                        SessionConflict,
                        grpc.StatusCode.ABORTED,
                    ),
                )
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call
            assert raised.value.code() is code
            assert type(error_of(raised.value)) is kind
