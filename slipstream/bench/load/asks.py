"""What a load asks: dialogues of one or more turns, and the requests that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipstream.wire.proto import gateway_pb2, types_pb2

Message = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What one user says, turn by turn. A question is a dialogue of one turn.

    Attributes:
        name: unique in its workload.
        kind: a task of Spec-Bench, or "chat"; figures are kept by it.
        turns: what the user says.
        max_tokens: of each turn's answer.
        temperature, seed: of all answers; 0 is greedy.
        ignore_eos: every answer has all of its max_tokens.
    """

    name: str
    kind: str
    turns: tuple[str, ...]
    max_tokens: tuple[int, ...]
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a turn with all that was said before it.

    Attributes:
        name: of the dialogue and the turn; the key of its known answer.
        messages: (role, content), the last one the user's.
    """

    name: str
    kind: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Extras:
    """How a request is sent, beside what it asks.

    Attributes:
        speculative: None leaves it to the server.
        cache_salt: prompts of different salts share no keys and values.
        plain_openai: send nothing that only this project's gateway knows.
        session_id, session_turn: of the session whose turn it is; empty: of none.
    """

    speculative: bool | None = None
    cache_salt: str = ""
    plain_openai: bool = False
    session_id: str = ""
    session_turn: int | None = None


def http_body(ask: Ask, model: str, extras: Extras) -> dict[str, Any]:
    """The body of a streaming POST /v1/chat/completions that tells its usage."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in ask.messages],
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "seed": ask.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    own: Mapping[str, Any] = {
        "ignore_eos": ask.ignore_eos or None,
        "speculative": extras.speculative,
        "cache_salt": extras.cache_salt or None,
        "session_id": extras.session_id or None,
        "session_turn": extras.session_turn,
    }
    if not extras.plain_openai:
        body.update({key: value for key, value in own.items() if value is not None})
    return body


def grpc_request(ask: Ask, extras: Extras) -> gateway_pb2.GatewayServiceGenerateRequest:
    """The same for GatewayService.Generate."""
    chat = [gateway_pb2.ChatMessage(role=role, content=content) for role, content in ask.messages]
    return gateway_pb2.GatewayServiceGenerateRequest(
        chat=gateway_pb2.Chat(messages=chat),
        sampling=types_pb2.SamplingParams(temperature=ask.temperature, seed=ask.seed),
        stop=types_pb2.StopConditions(max_tokens=ask.max_tokens, ignore_eos=ask.ignore_eos),
        speculative=extras.speculative,
        cache_salt=extras.cache_salt,
        session_id=extras.session_id,
        session_turn=extras.session_turn,
    )
