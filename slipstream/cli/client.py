"""A streaming client of the chat endpoint, in terms of what a terminal shows."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from slipstream.core.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotAuthenticated,
    SlipstreamError,
    Unavailable,
)

_SILENCE_SECONDS = 300.0
_CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Answer:
    """What is known of one answer; filled while it streams.

    Attributes:
        text: all that has arrived.
        started, first, last: `time.monotonic()` of the request, the first and the last text.
        tokens: completion tokens by the server's count, None if it did not say.
        finish_reason: why it ended, None where it has not.
        speculation: vLLM's block `metrics.speculative_decoding`.
    """

    text: str = ""
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None
    tokens: int | None = None
    finish_reason: str | None = None
    speculation: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> str:
        """Tokens, tokens per second after the first, time to the first, acceptance."""
        parts = []
        if self.tokens is not None:
            parts.append(f"{self.tokens} tokens")
        if self.first is not None and self.last is not None:
            if self.tokens is not None and self.tokens > 1 and self.last > self.first:
                parts.append(f"{(self.tokens - 1) / (self.last - self.first):.1f} tokens/s")
            parts.append(f"first after {self.first - self.started:.2f} s")
        rate = self.speculation.get("draft_acceptance_rate")
        if rate is not None:
            parts.append(f"{100 * rate:.0f}% of drafts accepted")
        length = self.speculation.get("mean_acceptance_length")
        if length is not None:
            parts.append(f"{length:.2f} tokens a step")
        return ", ".join(parts)


class ChatClient:
    """One server, one connection pool.

    Args:
        url: root of the server, as http://127.0.0.1:8000.
        key: API key, None where the server asks for none.
        silence: seconds without a byte after which it is given up.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        silence: float = _SILENCE_SECONDS,
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._silence = silence
        timeout = httpx.Timeout(connect=5.0, read=silence, write=30.0, pool=5.0)
        self._http = httpx.Client(headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def model(self) -> str:
        """The first model that is served. Raises what `stream` raises."""
        try:
            response = self._http.get(f"{self._url}/v1/models")
            if response.is_error:
                raise _refusal(response)
            return str(response.json()["data"][0]["id"])
        except httpx.HTTPError as failure:
            raise self._unreachable(failure) from failure
        except (ValueError, KeyError, IndexError, TypeError, httpx.InvalidURL) as failure:
            raise Unavailable(f"{self._url} does not answer like a model server") from failure

    def ready(self) -> dict[str, Any] | None:
        """What `/ready` says, whether it is ready or not; None where there is no such page, as
        behind a route for `/v1` alone.

        Raises:
            Unavailable, DeadlineExceeded: it cannot be reached.
        """
        try:
            response = self._http.get(f"{self._url}/ready")
            if response.status_code in {200, 503} and isinstance(told := response.json(), dict):
                return told
        except ValueError:
            pass
        except httpx.HTTPError as failure:
            raise self._unreachable(failure) from failure
        if response.status_code >= 500:
            # A proxy's, where the gateway behind it is not there yet.
            raise Unavailable(f"{self._url}/ready answers with status {response.status_code}")
        return None

    def whole(self, body: dict[str, Any], answer: Answer, path: str = _CHAT) -> str:
        """The answer's text in one piece; fills `answer`. Raises what `stream` raises."""
        try:
            response = self._http.post(f"{self._url}{path}", json=body)
            if response.is_error:
                raise _refusal(response)
            return "".join(_piece(response.json(), answer))
        except httpx.HTTPError as failure:
            raise self._unreachable(failure) from failure
        except ValueError as failure:
            raise Unavailable(f"{self._url} sent an answer that is not JSON") from failure

    def stream(self, body: dict[str, Any], answer: Answer, path: str = _CHAT) -> Generator[str]:
        """Pieces of the answer's text as they arrive; fills `answer` on the way.

        Closing the iterator closes the connection, which stops the work on the server.

        Args:
            path: of the endpoint: chats, or completions with `prompt` instead of `messages`.

        Raises:
            SlipstreamError: of the kind that fits the server's refusal; Unavailable and
                DeadlineExceeded where it cannot be reached or falls silent.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", f"{self._url}{path}", json=body) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                        yield from _piece(json.loads(data), answer)
        except httpx.HTTPError as failure:
            raise self._unreachable(failure) from failure
        except ValueError as failure:
            raise Unavailable(f"{self._url} sent an event that is not JSON") from failure

    def _unreachable(self, failure: httpx.HTTPError) -> SlipstreamError:
        if isinstance(failure, httpx.ReadTimeout):
            return DeadlineExceeded(f"{self._url} has been silent for {self._silence:.0f} s")
        if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout):
            return Unavailable(f"cannot reach {self._url}: is `slipstream up` running?")
        return Unavailable(f"the connection to {self._url} broke: {failure}")


def _piece(event: dict[str, Any], answer: Answer) -> Iterator[str]:
    if "error" in event:
        raise Unavailable(str(event["error"].get("message", "the server reported an error")))
    usage = event.get("usage")
    if usage:
        answer.tokens = usage.get("completion_tokens")
    metrics = event.get("metrics")
    if metrics:
        answer.speculation = metrics.get("speculative_decoding") or {}
    for choice in event.get("choices", ()):
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        # A chat's choice has a delta or, in one piece, a message; a completion's has a text.
        part = choice.get("delta") or choice.get("message") or {}
        text = part.get("content") or choice.get("text")
        if text:
            answer.last = time.monotonic()
            answer.first = answer.last if answer.first is None else answer.first
            answer.text += text
            yield text


def _refusal(response: httpx.Response) -> SlipstreamError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {response.status_code}"
    if response.status_code == 401:
        return NotAuthenticated(message)
    if response.status_code == 404:
        return ModelNotFound(message)
    return InvalidRequest(message) if response.status_code < 429 else Unavailable(message)
