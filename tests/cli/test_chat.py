from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from slipstream.cli.chat import turn
from slipstream.cli.client import Answer, ChatClient
from slipstream.core.errors import (
    DeadlineExceeded,
    ModelNotFound,
    NotAuthenticated,
    SlipstreamError,
    Unavailable,
)

LAST = {
    "choices": [],
    "usage": {"completion_tokens": 3},
    "metrics": {
        "speculative_decoding": {"draft_acceptance_rate": 0.75, "mean_acceptance_length": 2.5}
    },
}


def events(*pieces: str, last: dict[str, Any] = LAST) -> bytes:
    chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, last]]
    return "".join([": keep-alive\n\n", *lines, "data: [DONE]\n\n"]).encode()


def client(handler: Callable[[httpx.Request], httpx.Response]) -> ChatClient:
    return ChatClient("http://server/v1/", "key", httpx.MockTransport(handler))


def console() -> Console:
    return Console(file=io.StringIO(), width=60)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_answer_streams_and_ends_with_figures() -> None:
    """Text appears as sent, markup signs included; the line below has tokens and acceptance."""
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, content=events("a [b]", "[/c] d"))

    history = [{"role": "system", "content": "s"}]
    terminal = console()
    turn(client(handler), terminal, {"model": "m", "seed": 7}, history, "question")
    sent = json.loads(requests[0].content)
    assert requests[0].url == "http://server/v1/chat/completions"
    assert requests[0].headers["Authorization"] == "Bearer key"
    assert sent["messages"][-1] == {"role": "user", "content": "question"}
    assert (sent["seed"], sent["stream"]) == (7, True)
    assert sent["stream_options"] == {"include_usage": True}
    text, figures = shown(terminal).splitlines()
    assert text == "a [b][/c] d"
    assert figures.startswith("[3 tokens")
    assert "75% of drafts accepted, 2.50 tokens a step]" in figures
    assert [m["content"] for m in history] == ["s", "question", "a [b][/c] d"]


def test_ctrl_c_stops_the_answer_and_keeps_what_came() -> None:
    """An interrupted answer closes the connection and stays in the history as far as it came."""
    closed: list[bool] = []

    class Stream(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield events("begun").partition(b"data: [DONE]")[0]
            raise KeyboardInterrupt

        def close(self) -> None:
            closed.append(True)

    history: list[dict[str, str]] = []
    terminal = console()
    turn(
        client(lambda _: httpx.Response(200, stream=Stream())),
        terminal,
        {},
        history,
        "question",
    )
    assert closed == [True]
    assert "begun\n[stopped; " in shown(terminal)
    assert history[-1] == {"role": "assistant", "content": "begun"}


def test_refused_question_leaves_no_trace() -> None:
    """The server's message is shown and the conversation goes on without the question."""
    body = {"error": {"message": "too [long]", "type": "t", "param": None, "code": "c"}}
    history: list[dict[str, str]] = []
    terminal = console()
    turn(client(lambda _: httpx.Response(400, json=body)), terminal, {}, history, "question")
    assert shown(terminal).strip() == "too [long]"
    assert history == []


def test_error_in_mid_stream() -> None:
    """An error event after the first text ends the turn with its message."""
    terminal = console()
    content = events("begun", last={"error": {"message": "verifier lost"}})
    turn(client(lambda _: httpx.Response(200, content=content)), terminal, {}, [], "q")
    assert shown(terminal).split() == ["begun", "verifier", "lost"]


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(401, json={"error": {"message": "no key"}}), NotAuthenticated),
        (httpx.Response(404, json={"error": {"message": "no model"}}), ModelNotFound),
        (httpx.Response(503, text="<html>"), Unavailable),
        (httpx.Response(200, json={"data": []}), Unavailable),
        (httpx.Response(200, text="hello"), Unavailable),
    ],
)
def test_unusable_answers_about_models(
    response: httpx.Response, kind: type[SlipstreamError]
) -> None:
    """Each refusal, and a server of another kind, becomes the error that says it."""
    with pytest.raises(kind):
        client(lambda _: response).model()


@pytest.mark.parametrize(
    ("failure", "kind", "message"),
    [
        (httpx.ConnectError("x"), Unavailable, "is `slipstream up` running"),
        (httpx.ReadTimeout("x"), DeadlineExceeded, "silent"),
        (httpx.RemoteProtocolError("cut"), Unavailable, "broke: cut"),
    ],
)
def test_broken_connections(failure: Exception, kind: type[SlipstreamError], message: str) -> None:
    """What goes wrong on the way is told apart."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise failure

    with pytest.raises(kind, match=message):
        list(client(handler).stream({}, Answer()))


def test_speed_counts_what_came_after_the_first_token() -> None:
    """Tokens per second is (n - 1) / (last - first), the reciprocal of the time per token."""
    answer = Answer(started=10.0, first=10.5, last=12.5, tokens=5)
    assert answer.summary() == "5 tokens, 2.0 tokens/s, first after 0.50 s"
