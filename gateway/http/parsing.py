"""From a checked body to a GenerationRequest."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from gateway.http.schemas import ChatRequest, CompletionRequest
from gateway.prompts import Prompts
from gateway.request import GenerationRequest
from gateway.runs.cursor import HEADER as LAST_EVENT
from gateway.runs.record import KEY_HEADER, Asked, checked_key, digest_of_fields
from gateway.terms import TIMEOUT_HEADER, Terms, deadline, seconds_of
from slipstream.core.errors import InvalidParameter
from slipstream.core.params import MAX_LOGPROBS, SamplingParams
from slipstream.wire.codec import random_seed
from slipstream.wire.telemetry import logs

# What OpenAI's legacy completions generate where max_tokens is not given.
_COMPLETION_DEFAULT_TOKENS = 16


async def chat_generation(
    request: ChatRequest, prompts: Prompts, terms: Terms
) -> GenerationRequest:
    """Raises InvalidRequest, and what `Prompts` does."""
    messages = [message.for_template() for message in request.messages]
    prompt = await prompts.of_chat(messages, terms)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    if request.top_logprobs and not request.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs to be true", param="top_logprobs")
    if logprobs is not None and not 0 <= logprobs <= MAX_LOGPROBS:
        raise InvalidParameter(
            f"top_logprobs must be in [0, {MAX_LOGPROBS}], got {logprobs}", param="top_logprobs"
        )
    most, legacy = request.max_completion_tokens, request.max_tokens
    if most is not None and legacy is not None and most != legacy:
        raise InvalidParameter(
            f"max_tokens ({legacy}) and max_completion_tokens ({most}) contradict each other",
            param="max_completion_tokens",
        )
    max_tokens = most if most is not None else legacy
    return GenerationRequest(
        request_id=f"chatcmpl-{_name()}",
        operation="chat",
        prompts=(prompt,),
        max_tokens=max_tokens,
        logprobs=logprobs,
        terms=terms,
        **_common(request),
    )


async def completion_generation(
    request: CompletionRequest, prompts: Prompts, terms: Terms
) -> GenerationRequest:
    """Raises InvalidRequest, and what `Prompts` does."""
    token_ids = await _token_ids(request.prompt, prompts, terms)
    return GenerationRequest(
        request_id=f"cmpl-{_name()}",
        prompts=token_ids,
        max_tokens=request.max_tokens,
        default_max_tokens=_COMPLETION_DEFAULT_TOKENS,
        logprobs=request.logprobs,
        terms=terms,
        **_common(request),
    )


def _name() -> str:
    """What the request is called in logs and answers."""
    return logs.request_id.get() or uuid.uuid4().hex


async def _token_ids(
    prompt: str | list[str] | list[int] | list[list[int]], prompts: Prompts, terms: Terms
) -> tuple[tuple[int, ...], ...]:
    entries: list[Any] = [prompt] if isinstance(prompt, str) else list(prompt)
    if entries and isinstance(entries[0], int):
        entries = [entries]
    if not entries:
        raise InvalidParameter(
            "the prompt is empty; it must hold at least one token", param="prompt"
        )
    return tuple(
        [
            await prompts.of_text(entry, terms) if isinstance(entry, str) else tuple(entry)
            for entry in entries
        ]
    )


def terms(
    request: ChatRequest | CompletionRequest, tenant: str, arrived: float, header: str | None
) -> Terms:
    """The terms that body and header ask for.

    Args:
        tenant: name of the API key.
        arrived: `time.monotonic()` when the request came.
        header: `X-Request-Timeout`; the shorter of it and the body's `timeout` holds.

    Raises:
        InvalidParameter: names the field, or the header.
    """
    return Terms(
        tenant=tenant,
        priority=request.priority or 0,
        deadline=deadline(
            arrived, ("timeout", request.timeout), (TIMEOUT_HEADER, seconds_of(header))
        ),
        cache_salt=request.cache_salt or "",
    )


def asked_of(
    headers: Mapping[str, str],
    request: ChatRequest | CompletionRequest,
    operation: str,
    owner: str,
) -> Asked:
    """How the answer is wanted.

    Raises:
        InvalidParameter: the headers and fields do not go together.
    """
    key, last_event = checked_key(headers.get(KEY_HEADER)), headers.get(LAST_EVENT, "")
    if last_event and not request.stream:
        raise InvalidParameter(f"{LAST_EVENT} needs stream to be true", param=LAST_EVENT)
    options = request.stream_options
    return Asked(
        owner,
        digest_of_fields(operation, request.model_dump()) if request.stream or key else b"",
        stream=bool(request.stream),
        include_usage=bool(options and options.include_usage),
        key=key,
        last_event=last_event,
        background=bool(request.background),
    )


def _common(request: ChatRequest | CompletionRequest) -> dict[str, Any]:
    stop = request.stop
    return {
        "sampling": _sampling(request),
        "stop_token_ids": frozenset(request.stop_token_ids or ()),
        "ignore_eos": bool(request.ignore_eos),
        "stop_strings": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "n": 1 if request.n is None else request.n,
        "speculative": request.speculative,
    }


def _sampling(request: ChatRequest | CompletionRequest) -> SamplingParams:
    given = {
        name: value
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
        )
        if (value := getattr(request, name)) is not None
    }
    return SamplingParams(
        **given,
        top_k=_top_k(request.top_k),
        logit_bias=_logit_bias(request.logit_bias or {}),
        seed=random_seed() if request.seed is None else request.seed,
    )


def _top_k(value: int | None) -> int:
    if value is None or value == -1:
        return 0
    # No vocabulary has this many tokens: a larger value keeps all of them, as this one does.
    return min(value, 2**31 - 1)


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 9):
            raise InvalidParameter(
                f"logit_bias must map token ids to numbers, got {key[:40]!r}", param="logit_bias"
            )
        token = int(key)
        if token in bias:
            raise InvalidParameter(f"logit_bias names token {token} twice", param="logit_bias")
        bias[token] = value
    return bias
