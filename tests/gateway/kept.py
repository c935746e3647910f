"""Streams as events, what they hold whatever their chunks, and stores that are out of order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from slipstream.core.errors import StoreUnavailable
from slipstream.store import MemoryStore
from slipstream.wire.fakes import FakeVerifier

GUARD_SECONDS = 0.1


@dataclass(frozen=True)
class Event:
    """One of a stream: its id, and its data, which is "[DONE]" or JSON."""

    id: str | None
    data: Any


def event_of(block: str) -> Event:
    fields = dict(line.split(": ", 1) for line in block.split("\n") if line)
    data = fields.pop("data")
    event_id = fields.pop("id", None)
    assert not fields
    return Event(event_id, data if data == "[DONE]" else json.loads(data))


def events_of(text: str) -> list[Event]:
    return [event_of(block) for block in text.split("\n\n") if block.strip()]


def substance(events: Iterable[Event]) -> dict[str, Any]:
    """All that the events say, but for how they are cut."""
    choices: dict[int, dict[str, Any]] = {}
    found: dict[str, Any] = {"choices": choices, "envelope": set(), "last": None}
    for event in events:
        found["last"] = event.id or found["last"]
        if event.data == "[DONE]":
            found["done"] = found.get("done", 0) + 1
            continue
        data = dict(event.data)
        if "error" in data:
            found["error"] = data["error"]
            continue
        found["envelope"].add((data["id"], data["created"], data["model"], data["object"]))
        for name in ("usage", "seed", "metrics"):
            if data.get(name) is not None:
                assert name not in found
                found[name] = data[name]
        for choice in data["choices"]:
            add(choices.setdefault(choice["index"], {"text": "", "roles": 0}), choice)
    return found


def add(to: dict[str, Any], choice: dict[str, Any]) -> None:
    assert "finish" not in to, "nothing comes behind the end of a choice"
    delta = choice.get("delta", {})
    to["roles"] += "role" in delta
    to["text"] += delta.get("content", "") or choice.get("text", "")
    for name, values in (choice["logprobs"] or {}).items():
        if values is not None:
            to.setdefault(name, []).extend(values)
    if choice["finish_reason"] is not None:
        to["finish"] = choice["finish_reason"]


def without_chance(found: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on how a verifier came to the tokens."""
    return {name: value for name, value in found.items() if name != "metrics"}


def held(fake: FakeVerifier, after: int) -> asyncio.Event:
    """Has the verifier send no more than so many tokens of each request until the event is set."""
    gate, respond = asyncio.Event(), fake._respond

    async def patiently(request: Any, behaviour: Any) -> Any:
        sent = 0
        async for response in respond(request, behaviour):
            if sent >= after:
                await gate.wait()
            sent += len(response.tokens)
            yield response

    fake._respond = patiently  # type: ignore[method-assign]
    return gate


class TroubledStore(MemoryStore):
    """Behind a guard, as every store is: a call ends within a bound, or fails.

    Attributes:
        trouble: of the calls named: "down" fails at once, "hang" after the bound, having done
            nothing, "lost" after the bound, having done its work; "slow" takes half the bound.
        calls: how often each was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trouble: dict[str, str] = {}
        self.calls: dict[str, int] = {}

    def all_calls(self, trouble: str) -> None:
        self.trouble = dict.fromkeys(_CALLS, trouble)

    async def guarded(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.calls[name] = self.calls.get(name, 0) + 1
        trouble = self.trouble.get(name)
        if trouble == "down":
            raise StoreUnavailable("the store is down")
        if trouble == "hang":
            await asyncio.sleep(GUARD_SECONDS)
            raise StoreUnavailable("the store does not answer")
        if trouble == "slow":
            await asyncio.sleep(GUARD_SECONDS / 2)
        result = await getattr(MemoryStore, name)(self, *args, **kwargs)
        if trouble == "lost":
            await asyncio.sleep(GUARD_SECONDS)
            raise StoreUnavailable("the store's answer was lost")
        return result


_CALLS = (
    "get", "put", "delete", "log_open", "log_append", "log_read", "log_delete", "index_add",
    "index_remove", "index_list",
)  # fmt: skip


def _guarded(name: str) -> Any:
    async def call(self: TroubledStore, *args: Any, **kwargs: Any) -> Any:
        return await self.guarded(name, *args, **kwargs)

    return call


for _name in _CALLS:
    setattr(TroubledStore, _name, _guarded(_name))


def cut_logs(store: MemoryStore, request_id: str, tokens: int | None) -> None:
    """As if the store had never got what is behind so many tokens of each log; None: any of it."""
    prefix = f"gen/{request_id}/"
    for name in [name for name in store._logs if name.startswith(prefix)]:
        log = store._logs[name]
        if tokens is None:
            del store._logs[name]
            continue
        while log.entries and log.length > tokens:
            log.length = log.entries.pop()[0]
            log.ended = False
        if log.length <= tokens and log.entries and not log.ended:
            continue
