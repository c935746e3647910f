"""A model server whose answers can be made to lie, over real HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BLOCK = {
    "num_spec_steps": 4,
    "num_draft_tokens": 12,
    "num_accepted_tokens": 9,
    "num_guess_tokens": 5,
    "num_accepted_guess_tokens": 3,
}
READY = {
    "ready": True,
    "missing": [],
    "drafter": {"connected": True, "detail": ""},
    "verifiers": [{"address": "a:1", "state": "serving", "exactness": "strict"}],
    "store": {"state": "ok", "detail": ""},
}


class LyingServer:
    """Answers as told.

    Attributes:
        lies: what is other than it should be, by way ("streamed", "speculative"; both: the last).
        ready: what /ready says; a list is taken one by one, the last stays.
        block: `metrics.speculative_decoding` of answers with speculation; as `ready`.
        refusals: statuses of the next answers, before there is one.
        requests: bodies received.
    """

    def __init__(self) -> None:
        self.url = ""
        self.key: str | None = None
        self.reset()

    def reset(self) -> None:
        self.key = None
        self.lies: dict[str, dict[str, Any]] = {}
        self.ready: Any = READY
        self.block: Any = BLOCK
        self.refusals: list[int] = []
        self.requests: list[dict[str, Any]] = []
        # Prompts for which the truth is told.
        self.honest: set[str] = set()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Text, tokens, finish_reason and block."""
        self.requests.append(body)
        text = f" and then {body['prompt'][:5]} {body['temperature']} {body.get('seed')}"
        told = {"text": text, "tokens": 7, "finish_reason": "length", "block": {}}
        speculative = body["speculative"]
        if speculative:
            told["block"] = _next(self, "block")
        else:
            told["block"] = {**BLOCK, **dict.fromkeys(BLOCK, 0)}
        for way, holds in (
            ("streamed", body.get("stream")),
            ("speculative", speculative),
            ("plain", not speculative),
        ):
            if holds and body["prompt"] not in self.honest:
                told.update(self.lies.get(way, {}))
        return told


def _next(server: LyingServer, name: str) -> Any:
    value = getattr(server, name)
    if isinstance(value, list):
        return value.pop(0) if len(value) > 1 else value[0]
    return value


def _handler(server: LyingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _refuse(self, status: int) -> None:
            self._send(status, json.dumps({"error": {"message": f"no ({status})"}}).encode())

        def _let_in(self) -> bool:
            wanted = server.key is None or f"Bearer {server.key}"
            if wanted is True or self.headers.get("Authorization") == wanted:
                return True
            self._refuse(401)
            return False

        def do_GET(self) -> None:
            if self.path == "/ready":
                told = _next(server, "ready")
                if told is None:
                    self._refuse(404)
                else:
                    self._send(200 if told["ready"] else 503, json.dumps(told).encode())
            elif self._let_in():
                self._send(200, json.dumps({"data": [{"id": "m"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._let_in():
                return
            if server.refusals:
                self._refuse(server.refusals.pop(0))
                return
            told = server.answer(body)
            usage = {"completion_tokens": told["tokens"]}
            last = {"usage": usage, "metrics": {"speculative_decoding": told["block"]}}
            choice = {"index": 0, "text": told["text"], "finish_reason": told["finish_reason"]}
            if not body.get("stream"):
                self._send(200, json.dumps({"choices": [choice], **last}).encode())
                return
            text = told["text"]
            chunks = [
                {"choices": [{"index": 0, "text": text[:3], "finish_reason": None}]},
                {"choices": [{**choice, "text": text[3:]}]},
                {"choices": [], **last},
            ]
            lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
            self._send(200, f"{lines}data: [DONE]\n\n".encode(), "text/event-stream")

    return Handler


@contextlib.contextmanager
def lying_server() -> Iterator[LyingServer]:
    server = LyingServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join(10)
