"""Nothing that one client sends holds up the others' streams for long."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import orjson
import pytest
from pydantic import ValidationError

from gateway.http.body import parse
from gateway.http.schemas import ChatRequest, CompletionRequest
from gateway.watchdog import Watchdog
from slipstream.core.errors import InvalidParameter, InvalidRequest

MANY = 300_000
TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (CompletionRequest, {"prompt": [5] * MANY + ["a"]}, "prompt must be a string"),
        (CompletionRequest, {"prompt": ["a"] * MANY}, "at most 128 prompts"),
        (CompletionRequest, {"prompt": [[5]] * MANY}, "at most 128 prompts"),
        (CompletionRequest, {"prompt": [[5] * MANY + ["a"]]}, "prompt must be a string"),
        (CompletionRequest, {"prompt": "x", "stop": ["a"] * MANY}, "at most 16 strings"),
        (CompletionRequest, {"prompt": "x", "stop_token_ids": [5] * MANY}, "at most 256 ids"),
        (
            CompletionRequest,
            {"prompt": "x", "logit_bias": {str(i): 1 for i in range(MANY)}},
            "at most 1024 tokens",
        ),
        (CompletionRequest, {"prompt": "x"} | {f"f{i}": 1 for i in range(MANY)}, "fields"),
        (ChatRequest, {"messages": [TURN] * MANY}, "at most 4096 messages"),
        (ChatRequest, {"messages": [TURN | {"content": [5] * MANY}]}, "at most 1024 parts"),
    ],
)
def test_long_lists_are_refused_at_once(kind, fields, words):
    """A body of hundreds of thousands of entries costs what reading its JSON does, not seconds."""
    raw = orjson.dumps({"model": "m", **fields})
    began = time.process_time()
    orjson.loads(raw)
    reading = time.process_time() - began
    began = time.process_time()
    with pytest.raises((InvalidParameter, InvalidRequest), match=words) as refused:
        parse(raw, kind)
    assert time.process_time() - began < 3 * reading + 1.0
    # A fast machine makes even a message for each entry within that time.
    found = refused.value.__cause__
    assert not isinstance(found, ValidationError) or found.error_count() < 10


class Loop:
    """Its time passes when it is told to, in steps of a hundredth of a second."""

    def __init__(self):
        self.now, self.timers = 0.0, []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        self.timers.append((when, callback))
        return SimpleNamespace(cancel=self.timers.clear)

    def call_later(self, seconds, callback):
        return self.call_at(self.now + seconds, callback)

    def passes(self, seconds, *, at_once=False):
        for _ in range(1 if at_once else round(seconds * 100)):
            self.now += seconds if at_once else 0.01
            due = [timer for timer in self.timers if timer[0] <= self.now]
            self.timers = [timer for timer in self.timers if timer[0] > self.now]
            for _, callback in due:
                callback()


def test_watchdog(monkeypatch):
    """It barks when one wait is too long, however many short ones and rests there were."""
    loop, barks = Loop(), []
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    dog = Watchdog(lambda: barks.append(loop.now), 0.2)
    for _ in range(30):
        dog.wait(0.2)
        loop.passes(0.19)
    dog.rest()
    loop.passes(1.0)
    assert not dog.barked
    began = loop.now
    dog.wait(0.2)
    loop.passes(1.0)
    assert dog.barked
    assert barks == [pytest.approx(began + 0.2, abs=0.011)]
    # All at once, as where the loop was held up: then there is as much time again.
    dog = Watchdog(lambda: barks.append(loop.now), 0.2)
    dog.wait(0.2)
    loop.passes(5.0, at_once=True)
    loop.passes(0.1)
    assert not dog.barked
    dog.wait(0.2)
    loop.passes(5.0, at_once=True)
    loop.passes(6.0)
    assert dog.barked
    del barks[1:]
    silent = Watchdog(lambda: barks.append(0.0), 0.01)
    silent.wait(0.01)
    silent.close()
    loop.passes(1.0)
    assert len(barks) == 1
