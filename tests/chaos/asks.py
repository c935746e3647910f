"""What clients ask: one request, and how it is put at each door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slipstream.wire.proto import gateway_pb2, types_pb2

Message = tuple[str, str]
# How an answer is fetched. Sessions are dialogues of several turns, the others one request.
WAYS = ("stream", "whole", "background", "grpc", "session")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        name: unique in its workload; names its truth.
        prompt: chat messages (role, content), or the text of a completion.
        temperature: 0 is greedy. Every ask has a seed.
        stop_at: where in the answer, as a part of its tokens, a stop string shall come: one is
            chosen from the answer that there is without it.
        logprobs: None for none, k for the k likeliest beside the chosen token.
    """

    name: str
    prompt: tuple[Message, ...] | str
    max_tokens: int
    seed: int
    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_at: float | None = None
    n: int = 1
    logprobs: int | None = None
    ignore_eos: bool = True

    @property
    def is_chat(self) -> bool:
        return not isinstance(self.prompt, str)

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"


def http_body(ask: Ask, model: str, extra: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """A POST's body; of a stream that tells its usage in the end."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": ask.max_tokens,
        "seed": ask.seed,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "presence_penalty": ask.presence_penalty,
        "frequency_penalty": ask.frequency_penalty,
        "repetition_penalty": ask.repetition_penalty,
        "n": ask.n,
        "ignore_eos": ask.ignore_eos,
        "stream": stream,
    }
    if isinstance(ask.prompt, str):
        body |= {"prompt": ask.prompt, "logprobs": ask.logprobs}
    else:
        body["messages"] = [{"role": role, "content": content} for role, content in ask.prompt]
        if ask.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": ask.logprobs}
    if ask.stop:
        body["stop"] = list(ask.stop)
    if stream:
        body["stream_options"] = {"include_usage": True}
    return {**body, **extra}


def grpc_request(ask: Ask, **more: Any) -> gateway_pb2.GatewayServiceGenerateRequest:
    """The same for GatewayService.Generate; `more` are fields of the message."""
    request = gateway_pb2.GatewayServiceGenerateRequest(
        sampling=types_pb2.SamplingParams(
            temperature=ask.temperature,
            top_p=ask.top_p,
            presence_penalty=ask.presence_penalty,
            frequency_penalty=ask.frequency_penalty,
            repetition_penalty=ask.repetition_penalty,
            seed=ask.seed,
        ),
        stop=types_pb2.StopConditions(max_tokens=ask.max_tokens, ignore_eos=ask.ignore_eos),
        stop_strings=ask.stop,
        n=ask.n,
        logprobs=ask.logprobs,
        **more,
    )
    if isinstance(ask.prompt, str):
        request.text = ask.prompt
    else:
        for role, content in ask.prompt:
            request.chat.messages.add(role=role, content=content)
    return request
