"""One answer as its client sees it come in, whatever the client is built on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from slipstream.wire.proto import gateway_pb2, types_pb2

_FINISH = {types_pb2.FINISH_REASON_STOP: "stop", types_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass(slots=True)
class Reading:
    """An answer while it streams. All times are of one clock, in seconds.

    Attributes:
        due: when the request should have been sent; it counts from here, not from `sent`, so that
            a client that is late does not flatter the server.
        arrivals: of every chunk that carried text or tokens.
        token_ids: where the door tells them (gRPC).
        finish_reason: "stop" or "length"; empty while there is none.
        completion_tokens, prompt_tokens, cached_tokens: as the server counts; None until told.
        refused: it was turned away for overload (429, RESOURCE_EXHAUSTED).
        retry_after: seconds, as the refusal said.
        left: the client went away on purpose.
        failure: what went wrong; empty where nothing did.
    """

    due: float
    sent: float
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    end: float = 0.0
    finish_reason: str = ""
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    refused: bool = False
    retry_after: float | None = None
    left: bool = False
    failure: str = ""

    def line(self, line: str, now: float) -> None:
        """Takes one line of a stream of server-sent events, in OpenAI's chunks."""
        data = line[5:].strip() if line.startswith("data:") else ""
        if not data or data == "[DONE]":
            return
        try:
            self.event(json.loads(data), now)
        except (ValueError, KeyError, TypeError, AttributeError) as failure:
            self.failure = f"an event that is no chunk ({failure}): {data[:200]}"

    def event(self, event: dict[str, Any], now: float) -> None:
        if "error" in event:
            self.failure = f"error in the stream: {event['error']}"
            return
        if usage := event.get("usage"):
            self.completion_tokens = int(usage["completion_tokens"])
            self.prompt_tokens = int(usage["prompt_tokens"])
            self.cached_tokens = int(
                (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            )
        for choice in event.get("choices", ()):
            if text := (choice.get("delta") or {}).get("content"):
                self.arrivals.append(now)
                self.text += text
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def message(self, message: gateway_pb2.GatewayServiceGenerateResponse, now: float) -> None:
        """Takes one message of GatewayService.Generate."""
        if message.tokens:
            self.arrivals.append(now)
            self.token_ids.extend(token.id for token in message.tokens)
        self.text += message.text
        if message.finish_reason:
            self.finish_reason = _FINISH.get(message.finish_reason, "")
        if message.HasField("usage"):
            self.completion_tokens = message.usage.completion_tokens
            self.prompt_tokens = message.usage.prompt_tokens
            self.cached_tokens = message.usage.cached_prompt_tokens

    def refuse(self, status: int, body: str, retry_after: str | None) -> None:
        """Takes an HTTP status of 400 or above."""
        self.refused = status == 429
        self.failure = f"status {status}: {body[:300]}"
        try:
            self.retry_after = None if retry_after is None else float(retry_after)
        except ValueError:
            self.failure += f" (Retry-After {retry_after!r} is no number of seconds)"
