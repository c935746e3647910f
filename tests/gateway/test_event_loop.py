"""Nothing that one client sends holds up the others' streams for long."""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

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
    with pytest.raises((InvalidParameter, InvalidRequest), match=words):
        parse(raw, kind)
    assert time.process_time() - began < 3 * reading + 0.2


async def test_watchdog(eventually):
    """It barks when one wait is too long, however many short ones and rests there were."""
    barks = []
    dog = Watchdog(lambda: barks.append(time.perf_counter()), 0.2)
    for _ in range(30):
        dog.wait(0.2)
        await asyncio.sleep(0.01)
    dog.rest()
    await asyncio.sleep(0.3)
    assert not dog.barked
    began = time.perf_counter()
    dog.wait(0.2)
    await eventually(lambda: dog.barked)
    assert barks[0] - began > 0.195
    await asyncio.sleep(0.3)
    assert len(barks) == 1
    silent = Watchdog(lambda: barks.append(0.0), 0.01)
    silent.wait(0.01)
    silent.close()
    await asyncio.sleep(0.05)
    assert len(barks) == 1
