"""What a client ends with, and how it came by it; and what the answer should have been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slipstream.wire.proto import gateway_pb2, types_pb2
from tests.chaos.events import EventOrder

_REASONS = {types_pb2.FINISH_REASON_STOP: "stop", types_pb2.FINISH_REASON_LENGTH: "length"}


def reason_of(message: gateway_pb2.GatewayServiceGenerateResponse) -> str:
    """Why a continuation ended, as HTTP has it; empty where it has not."""
    return _REASONS.get(message.finish_reason, "?") if message.finish_reason else ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation of an undisturbed run.

    Attributes:
        token_texts: of each token, as log probabilities name them.
        logprobs: of each token; empty where none were asked for.
        tokens: as the usage counts them.
    """

    text: str
    token_ids: tuple[int, ...]
    token_texts: tuple[str, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Truth:
    """The answer that an ask has: of every continuation, in order."""

    choices: tuple[Choice, ...]
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)


@dataclass(slots=True)
class Heard:
    """One continuation as a client has it; ids, or texts, of tokens where its door tells them."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""


@dataclass(slots=True)
class Answer:
    """One generation as its client has it, tries and all. Times on the loop's clock, in seconds.

    Attributes:
        choices: by index.
        done: the server said that this is all.
        session: what the answer says of its session.
        request_id, last_event: as the server named them last.
        order: of the events so far.
        arrivals: of everything that carried tokens.
        began, ended: the client's whole effort.
        partials: what it had when it had to begin again, oldest first.
        ways: how often it came by the rest in which way.
        complaints: what no server should ever do, though the client got over it.
        failure: why it gave up; empty where it did not.
        session_gone: it gave up since the store has forgotten the session.
    """

    choices: dict[int, Heard] = field(default_factory=dict)
    completion_tokens: int | None = None
    prompt_tokens: int | None = None
    done: bool = False
    session: Mapping[str, Any] | None = None
    request_id: str = ""
    last_event: str = ""
    order: EventOrder = field(default_factory=EventOrder)
    arrivals: list[float] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    partials: list[dict[int, Heard]] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    failure: str = ""
    session_gone: bool = False

    def heard(self, index: int) -> Heard:
        return self.choices.setdefault(index, Heard())

    def begin_again(self) -> None:
        """Keeps aside what came so far: the rest of it cannot be had."""
        if self.choices:
            self.partials.append(self.choices)
        self.choices, self.last_event, self.session = {}, "", None
        self.order = EventOrder()
        self.completion_tokens = self.prompt_tokens = None

    def named(self, event: str, carrying: Sequence[int]) -> None:
        """Takes the name of an event; empty where it has none."""
        if event:
            self.last_event = event
            if complaint := self.order.take(event, carrying):
                self.complaints.append(complaint)

    def usage(self, usage: Mapping[str, Any]) -> None:
        self.completion_tokens = int(usage["completion_tokens"])
        self.prompt_tokens = int(usage["prompt_tokens"])

    def chunk(self, content: Mapping[str, Any], now: float) -> list[int]:
        """Takes one chunk of a stream; returns the indices that it has tokens of."""
        self.request_id = content.get("id") or self.request_id
        if content.get("usage"):
            self.usage(content["usage"])
        self.session = content.get("session") or self.session
        carrying = []
        for choice in content.get("choices", ()):
            heard = self.heard(choice["index"])
            text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
            heard.text += text
            tokens = _logprobs(choice.get("logprobs"), heard)
            heard.finish_reason = choice.get("finish_reason") or heard.finish_reason
            if text or tokens:
                carrying.append(choice["index"])
        if carrying:
            self.arrivals.append(now)
        return carrying

    def body(self, content: Mapping[str, Any], now: float) -> None:
        """Takes a whole answer, which ends it."""
        self.request_id = content.get("id") or self.request_id
        self.usage(content["usage"])
        self.session = content.get("session")
        self.choices = {}
        for choice in content["choices"]:
            heard = self.heard(choice["index"])
            heard.text = choice["text"] if "text" in choice else choice["message"]["content"]
            _logprobs(choice.get("logprobs"), heard)
            heard.finish_reason = choice["finish_reason"] or ""
        self.arrivals.append(now)
        self.done = True

    def message(self, message: gateway_pb2.GatewayServiceGenerateResponse, now: float) -> list[int]:
        """Takes one response of the gRPC door; the same as `chunk`."""
        self.request_id = message.request_id or self.request_id
        heard = self.heard(message.index)
        heard.text += message.text
        heard.token_ids.extend(token.id for token in message.tokens)
        heard.logprobs.extend(t.logprob for t in message.tokens if t.HasField("logprob"))
        if message.HasField("session"):
            session = message.session
            self.session = {
                "id": session.id, "turns": session.turns,
                "stored": session.stored, "detail": session.detail,
            }  # fmt: skip
        if message.finish_reason:
            heard.finish_reason = reason_of(message)
            self.completion_tokens = (self.completion_tokens or 0) + message.usage.completion_tokens
            self.prompt_tokens = message.usage.prompt_tokens
        if not (message.tokens or message.text):
            return []
        self.arrivals.append(now)
        return [message.index]


def _logprobs(content: Mapping[str, Any] | None, heard: Heard) -> int:
    """Takes the log probabilities of a choice, of either shape; how many there were."""
    if not content:
        return 0
    if "content" in content:
        entries = content["content"] or ()
        heard.token_texts.extend(entry["token"] for entry in entries)
        heard.logprobs.extend(float(entry["logprob"]) for entry in entries)
        return len(entries)
    heard.token_texts.extend(content["tokens"])
    heard.logprobs.extend(map(float, content["token_logprobs"]))
    return len(content["tokens"])
