"""Clients of the HTTP door that do not give up: they resume, repeat, or come back later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.chaos.answers import Answer
from tests.chaos.asks import Ask, http_body
from tests.chaos.tries import Broken, GaveUp, Refused, Tries

# A stream that is silent for so long is taken for dead; a whole answer may take longer.
_CONNECT, _SILENT, _WHOLE = 2.0, 5.0, 20.0
_POLL = 0.25
# Of a stream that has no more to it than what was received.
_DONE = "[DONE]"


def http_client() -> httpx.AsyncClient:
    """For all HTTP clients of a storm: as many connections as they want, kept alive between."""
    return httpx.AsyncClient(
        timeout=httpx.Timeout(_SILENT, connect=_CONNECT),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        trust_env=False,
    )


class HttpClient:
    """One client. Its answers hold what went wrong; it raises nothing.

    Args:
        web: shared with others.
        model: its name for clients.
    """

    def __init__(self, web: httpx.AsyncClient, model: str, tries: Tries) -> None:
        self._web = web
        self._model = model
        self._tries = tries
        self._clock = asyncio.get_running_loop().time

    async def ask(self, ask: Ask, way: str, key: str, extra: Mapping[str, Any]) -> Answer:
        """Asks until it has the whole answer, or its patience is over.

        Args:
            way: stream, whole or background.
            key: the idempotency key, the same for every try.
            extra: further fields of the body.
        """
        answer = Answer(began=self._clock())
        self._tries.start(answer.began)
        kinds = {"stream": self._stream, "whole": self._whole, "background": self._background}
        headers = {"Idempotency-Key": key}
        body = http_body(ask, self._model, extra, stream=way == "stream")
        try:
            while not answer.done:
                try:
                    await kinds[way](answer, ask.path, body, headers)
                except (Refused, Broken) as failure:
                    await self._tries.after(failure, answer)
        except GaveUp as failure:
            answer.failure = str(failure)
        except (KeyError, TypeError, ValueError) as failure:
            answer.failure = f"an answer that is none: {failure!r}"
        answer.ended = self._clock()
        return answer

    async def _stream(
        self,
        answer: Answer,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        """Receives events until the end, from where it was. Raises Refused and Broken."""
        if answer.last_event:
            path = f"/v1/generations/{answer.request_id}/events"
            method, sent, headers = "GET", None, {"Last-Event-ID": answer.last_event}
        else:
            self._tries.anew(answer)
            method, sent = "POST", body
        tried = answer.ways["tried"] > 0
        answer.ways["tried"] += 1
        async with self._opened(method, path, sent, headers) as response:
            if tried:
                answer.ways["resumed" if method == "GET" else "repeated"] += 1
            async for name, data in _events(response):
                self._tries.progress()
                if data == _DONE:
                    answer.done = True
                    return
                content = json.loads(data)
                if error := content.get("error"):
                    raise Refused(error.get("code") or "?", error.get("message", ""))
                answer.named(name, answer.chunk(content, self._clock()))
                if answer.order.ended:
                    answer.done = True
                    return
        raise Broken("the stream ended before its end")

    async def _whole(
        self,
        answer: Answer,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        """Raises Refused and Broken."""
        tried = answer.ways["tried"] > 0
        answer.ways["tried"] += 1
        content = await self._json("POST", path, body, headers)
        answer.ways["repeated"] += tried
        answer.body(content, self._clock())

    async def _background(
        self,
        answer: Answer,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        """Raises Refused and Broken."""
        answer.ways["tried"] += 1
        if not answer.request_id:
            begun = await self._json("POST", path, {**body, "background": True}, headers)
            answer.request_id = begun["id"]
        while True:
            await asyncio.sleep(_POLL)
            # Whichever gateway: none of them needs to be the one that runs it.
            self._tries.place += 1
            try:
                found = await self._json("GET", f"/v1/generations/{answer.request_id}", None, {})
            except Refused as failure:
                if failure.generation_gone:
                    answer.request_id = ""
                raise
            answer.ways["polled"] += 1
            if found.get("status") == "completed":
                answer.body(found["result"], self._clock())
                return
            if found.get("status") == "failed":
                error = found.get("error") or {}
                raise GaveUp(f"in the background: {error.get('code')}: {error.get('message')}")
            if self._tries.left < 0:
                raise GaveUp(f"still {found.get('status')} after {self._tries.seconds:.0f} s")

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        async with self._opened(method, path, body, headers, read=_WHOLE) as response:
            content: dict[str, Any] = json.loads(await response.aread())
            return content

    @asynccontextmanager
    async def _opened(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        *,
        read: float = _SILENT,
    ) -> AsyncIterator[httpx.Response]:
        """A response whose status is no error. Raises Refused and Broken, also from its block."""
        url = f"{self._tries.gateway.http}{path}"
        timeout = httpx.Timeout(read, connect=_CONNECT)
        request = self._web.build_request(
            method, url, json=body, headers=dict(headers), timeout=timeout
        )
        try:
            response = await self._web.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise refused(response)
                yield response
            finally:
                await response.aclose()
        except (httpx.HTTPError, json.JSONDecodeError) as failure:
            raise Broken(f"{type(failure).__name__}: {failure}") from failure


def refused(response: httpx.Response) -> Refused:
    """The error that a response, read already, tells of."""
    try:
        error = response.json()["error"]
        code, message = error.get("code") or "?", error.get("message", "")
    except (ValueError, KeyError, AttributeError, TypeError):
        code, message = "?", response.text[:200]
    told = response.headers.get("retry-after-ms")
    seconds = response.headers.get("retry-after")
    after = float(told) / 1000 if told else float(seconds) if seconds else None
    return Refused(code, f"{message} (status {response.status_code})", after)


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    """(id, data) of each event; one whose end has not come is none."""
    name, data = "", ""
    async for line in response.aiter_lines():
        if not line:
            if data:
                yield name, data
            name, data = "", ""
        elif line.startswith("id:"):
            name = line[3:].strip()
        elif line.startswith("data:"):
            data = line[5:].strip()
