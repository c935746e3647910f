"""The bytes of a request, read up to a limit and checked against a schema."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from slipstream.core.errors import BodyTooLarge, DeadlineExceeded, InvalidParameter, InvalidRequest

_BODY_SECONDS = 60.0
# More than OpenAI's API and ours have; each unknown one would be looked at.
_MOST_FIELDS = 100
_Model = TypeVar("_Model", bound=BaseModel)
Receive = Callable[[], Awaitable[Mapping[str, Any]]]

# OpenAI fields that are not served: any value is refused but null and those that ask for nothing.
_INERT: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "echo": (False,),
    **dict.fromkeys(
        ("audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"), ()
    ),
}
_IGNORED = frozenset({"store", "metadata", "safety_identifier", "prompt_cache_key"})
_UNION_HELP = {
    "prompt": "must be a string, a list of strings, a list of token ids or a list of such lists",
    "stop": "must be a string or a list of strings",
    "content": "must be a string or a list of {'type': 'text', 'text': ...} parts",
}


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """The whole body; no more than `limit` bytes are ever held.

    Raises:
        BodyTooLarge: announced or counted to be over the limit.
        DeadlineExceeded: the client does not send it within a minute.
        InvalidRequest: the client went away.
    """
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise InvalidRequest("the client went away before the body was complete")
                body += event.get("body", b"")
                if len(body) > limit:
                    raise _too_large(limit)
                if not event.get("more_body", False):
                    return bytes(body)
    except TimeoutError as failure:
        raise DeadlineExceeded(f"the body did not come within {_BODY_SECONDS:g} s") from failure


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the request body is larger than the limit of {limit} bytes")


def parse(body: bytes, kind: type[_Model]) -> _Model:
    """The request that the body holds.

    Raises:
        InvalidRequest: not JSON (NaN, infinite numbers and invalid UTF-8 are not).
        InvalidParameter: names the field that is wrong, unknown or not served.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        raise InvalidRequest(f"the body is not valid JSON: {failure}") from failure
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        return kind.model_validate(_screen(fields))
    except ValidationError as failure:
        raise _explain(failure) from failure


def _same(value: Any, other: Any) -> bool:
    # Python holds 0 and False for equal; JSON does not.
    return type(value) is type(other) and bool(value == other)


def _screen(fields: dict[str, Any]) -> dict[str, Any]:
    """Takes out the fields that change nothing; refuses those that would, but are not served."""
    if len(fields) > _MOST_FIELDS:
        raise InvalidRequest(f"the body has {len(fields)} fields; there are not that many")
    best_of = fields.get("best_of")
    if best_of is not None and not _same(best_of, fields.get("n") or 1):
        raise InvalidParameter("best_of is not supported, except equal to n", param="best_of")
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _INERT:
            if value is not None and not any(_same(value, inert) for inert in _INERT[name]):
                raise InvalidParameter(
                    f"{name} is not supported by this server; leave it out", param=name
                )
        elif name not in _IGNORED and name != "best_of":
            kept[name] = value
    return kept


def _explain(failure: ValidationError) -> InvalidParameter:
    """The first error, in words that name the field as the client wrote it."""
    first = failure.errors(include_url=False, include_context=False)[0]
    names = [part for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    union = next((name for name in names if name in _UNION_HELP), None)
    if first["type"] == "extra_forbidden":
        param = ".".join(str(part) for part in first["loc"])
        return InvalidParameter(f"unknown field: {param}", param=param)
    if first["type"] == "missing":
        param = ".".join(str(part) for part in names)
        return InvalidParameter(f"the field {param} is required", param=param)
    if union is not None and first["type"] not in {"too_short", "value_error"}:
        param = ".".join(str(part) for part in names[: names.index(union) + 1])
        return InvalidParameter(f"{param} {_UNION_HELP[str(union)]}", param=param)
    param = ".".join(str(part) for part in names)
    message = first["msg"].removeprefix("Value error, ")
    return InvalidParameter(f"{param}: {message}" if param else message, param=param or None)
